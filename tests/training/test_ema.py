"""An average of weights and statistics."""

import pytest
import torch
from torch import nn

from mobilenet_exp import evaluate, train
from mobilenet_exp.config.schema import EvalConfig, EvalRunConfig
from mobilenet_exp.training.ema import Average
from mobilenet_exp.weights.checkpoint import load_checkpoint
from mobilenet_exp.weights.load import load_model

pytestmark = pytest.mark.usefixtures("tiny")

SMALL = (
    "model.name=tiny",
    "data=fake", "data.resolution=32", "data.args.num_images=64", "data.batch_size=16",
    "train.epochs=1",
)  # fmt: skip


def test_an_average_warms_up_to_its_decay_and_covers_statistics():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    average = Average(net, decay=0.9, every=2, warmup=True)
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[1].running_mean.fill_(1.0)
    average.update(0)
    assert average.model[1].running_mean.sum() == 0
    average.update(1)
    # the first step takes the weights over: nothing of the initial ones stays
    assert torch.equal(average.model[0].weight, net[0].weight)
    assert torch.equal(average.model[1].running_mean, net[1].running_mean)
    with torch.no_grad():
        net[1].running_mean.fill_(2.0)
    for step in range(2, 2000):
        average.update(step)
    before = average.model[1].running_mean.clone()
    with torch.no_grad():
        net[1].running_mean.fill_(3.0)
    average.update(2001)
    torch.testing.assert_close(average.model[1].running_mean, 0.9 * before + 0.1 * 3.0)


def test_a_run_reports_and_keeps_both_kinds_of_weights(quick, tmp_path):
    results = train(quick(*SMALL, "train.ema_decay=0.9", "train.epochs=2"))
    folder = tmp_path / "runs" / results["name"]
    state = load_checkpoint(folder / "checkpoints" / "last.pt")
    assert not torch.equal(
        state["model"]["stem.conv.weight"], state["model_ema"]["stem.conv.weight"]
    )
    for wants, part in ((True, "model_ema"), (False, "model")):
        config = EvalConfig(checkpoint=str(folder / "checkpoints" / "last.pt"), ema=wants)
        subject = load_model(config)
        assert torch.equal(subject.model.stem.conv.weight, state[part]["stem.conv.weight"])
    cpu = EvalRunConfig(device="cpu", wandb="disabled", root=str(tmp_path / "runs"))
    scores = evaluate(EvalConfig(checkpoint=str(folder / "checkpoints" / "best.pt"), run=cpu))
    assert scores["top1"] == results["top1"]
