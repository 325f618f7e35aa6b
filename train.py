"""Train one network, or sweep many, and set each beside its paper.

python train.py model=v3_large optimizer=rmsprop
python train.py -m model.width_mult=0.35,0.5,0.75,1.0
"""

from mobilenet_exp import cli


@cli.entry("config")
def main(config, overrides, group):
    from mobilenet_exp.deploy import job as run

    return run.train(config, overrides=overrides, group=group)


if __name__ == "__main__":
    main()
