"""Score a run's checkpoint, or weights from anywhere; or name the things on a photo.

python eval.py checkpoint=runs/NAME/checkpoints/best.pt
python eval.py model=v3_small weights=FILE_OR_NAME data=imagenet data.root=IMAGENET
python eval.py model=v3_small weights=FILE_OR_NAME image=PHOTO_OR_FOLDER
torchrun --nproc-per-node 2 eval.py ...

Exits with 3 where images had to be left out or are missing.
"""

import sys

from mobilenet_exp import cli


@cli.entry("eval")
def main(config, overrides, **_):
    from mobilenet_exp.deploy import job as run

    results = run.evaluate(config, overrides=overrides)
    if results["num_left_out"] or results["num_missing"]:
        sys.exit(cli.INCOMPLETE)


if __name__ == "__main__":
    main()
