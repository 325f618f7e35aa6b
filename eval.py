"""Score a checkpoint or weights, or classify photos: `python eval.py --help`."""

from mobilenet_exp.cli import evaluate

if __name__ == "__main__":
    evaluate()
