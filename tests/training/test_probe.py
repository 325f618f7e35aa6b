"""Parts of a network that stay as they are."""

import pytest
import torch

from mobilenet_exp import train
from mobilenet_exp.core.console import no_progress
from mobilenet_exp.training.train import build_state, finish_epoch, make_updates
from mobilenet_exp.weights.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("tiny")

SMALL = (
    "model.name=tiny",
    "data=fake", "data.resolution=32", "data.args.num_images=64", "data.batch_size=16",
    "train.epochs=1",
)  # fmt: skip


def test_a_probe_learns_the_classifier_and_nothing_else(quick, tmp_path):
    first = train(quick(*SMALL))
    best = tmp_path / "runs" / first["name"] / "checkpoints" / "best.pt"
    words = (f"weights={best}", "train.trainable=classifier", "optimizer.lr=0.5")
    results = train(quick(*SMALL, *words))
    after = load_checkpoint(tmp_path / "runs" / results["name"] / "checkpoints" / "last.pt")
    before = load_checkpoint(best)
    changed = {
        key for key, value in before["model"].items() if not torch.equal(after["model"][key], value)
    }
    assert changed == {"classifier.weight", "classifier.bias"}
    assert results["params"] == first["params"]


def test_statistics_may_stay_as_they_are(quick):
    session = build_state(quick(*SMALL, "train.bn=frozen"))
    before = session.model.stem.bn.running_mean.clone()
    for _ in make_updates(session, no_progress):
        pass
    finish_epoch(session)
    assert torch.equal(session.model.stem.bn.running_mean, before)
    assert session.model.stem.bn.num_batches_tracked == 0
