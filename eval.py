"""Evaluate a run's checkpoint again; the path is all it needs.

python eval.py checkpoint=runs/NAME/checkpoints/best.pt
"""

from mobilenet_exp import cli


@cli.entry("eval")
def main(config, **_):
    from mobilenet_exp import run

    return run.evaluate(config)


if __name__ == "__main__":
    main()
