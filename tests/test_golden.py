"""The losses of the first updates stay what they were when golden_losses.json was written.

A refactoring must not change a number. A change of numerics that is meant renews the file
(`python tests/test_golden.py`), and its commit says why. Networks learn in float64 here: these
maps of a pixel or two amplify a rounding by a million in two updates, and each processor
rounds in its own way.
"""

import json
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from mobilenet_exp import compose
from mobilenet_exp.core.console import no_progress
from mobilenet_exp.training import train as training
from mobilenet_exp.training.train import make_updates

STORED = Path(__file__).with_name("golden_losses.json")
COMMON = ("model.width_mult=0.35", "train.epochs=2", "run.device=cpu", "run.wandb=disabled")
# resized by Pillow, as when the file was written
NOISE = (
    "data=fake", "data.resize=exact", "data.resolution=64", "data.batch_size=8",
    "data.args.num_images=40",
)  # fmt: skip
RECIPES = {
    "v1_sgd": (*NOISE, "model=v1", "optimizer=sgd", "data.augment=affine"),
    "v2_rmsprop_ema": (
        *NOISE, "model=v2", "optimizer=rmsprop", "schedule=exponential", "train.ema_decay=0.9",
        "train.label_smoothing=0.1", "data.augment=random_resized_crop",
    ),
    "v3_small_mixup": (
        *NOISE, "model=v3_small", "optimizer=rmsprop_torch", "data.mixup=0.2", "data.cutmix=1.0",
        "data.auto_augment=rand-m9-mstd0.5", "data.random_erase=0.5", "train.clip_grad_norm=5",
    ),
    "v4_conv_small_accumulated": (
        *NOISE, "model=v4_conv_small", "optimizer=adamw", "train.accumulate=2", "model.dropout=0.2",
        "model.stochastic_depth=0.1", "data.augment=inception",
    ),
    "digits_frozen_bn": ("data=digits", "train.bn=frozen"),
}  # fmt: skip


def losses(config) -> list[float]:
    """Return the mean loss of each of the first five updates."""
    build = training.build_network

    def build_in_float64(*words, **options):
        model, notes = build(*words, **options)
        return model.double(), notes

    with patch.object(training, "build_network", build_in_float64):
        session = training.build_state(config)
    session.forward = lambda images: session.model(images.double())
    session.meter.loss_sum = session.meter.loss_sum.double()
    found, before = [], 0.0
    for _ in make_updates(session, no_progress):
        total = session.meter.loss_sum.item()
        found.append((total - before) / session.loaders.sampler.batch_size)
        before = total
        if len(found) == 5:
            break
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_first_losses_are_the_stored_ones(name):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = losses(compose(*COMMON, *RECIPES[name]))
    finally:
        torch.set_num_threads(threads)
    stored = json.loads(STORED.read_text())
    assert len(found) == 5
    assert found == pytest.approx(stored["losses"][name], rel=1e-7)


def main() -> None:
    """Write the file anew."""
    torch.set_num_threads(1)
    found = {name: losses(compose(*COMMON, *words)) for name, words in RECIPES.items()}
    STORED.write_text(json.dumps({"losses": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
