"""Train one network, or sweep many: `python train.py --help`."""

from mobilenet_exp.cli import train

if __name__ == "__main__":
    train()
