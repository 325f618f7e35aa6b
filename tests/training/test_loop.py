"""Epochs: the BatchNorm trap of short runs, and its cure."""

import torch

from mobilenet_exp.core.console import no_progress
from mobilenet_exp.evaluation.metrics import scores
from mobilenet_exp.evaluation.predict import predict
from mobilenet_exp.machine.compute import Compute
from mobilenet_exp.training import step
from mobilenet_exp.training.train import build_state, finish_epoch, make_updates

CPU = torch.device("cpu")


def _evaluate(model, batches, device) -> dict[str, float]:
    return scores(predict(model, batches, device))


def _epoch(session):
    """Run one epoch of a session without saving."""
    for _ in make_updates(session, no_progress):
        pass
    return finish_epoch(session)


def test_a_short_run_evaluates_at_chance_only_without_reestimation(quick):
    """The trap and its cure, on real digits with the paper's BN momentum."""
    config = quick("model.width_mult=0.5", "train.epochs=6", "train.precise_bn_batches=0")
    session = build_state(config)
    assert session.model.stem.bn.momentum == 0.01
    for _ in range(6):
        metrics, _ = _epoch(session)
    assert metrics["train/top1"] > 60
    assert metrics["val/top1"] < 30
    step.reestimate_bn(session.model, session.loaders.train, Compute(CPU))
    assert _evaluate(session.model, session.loaders.val, CPU)["top1"] > 75


def test_an_epoch_reestimates_statistics_if_the_config_says_so(quick):
    tracked = {}
    for batches in (0, 3):
        session = build_state(quick(f"train.precise_bn_batches={batches}"))
        _epoch(session)
        tracked[batches] = session.model.stem.bn.num_batches_tracked.item()
    # 1437 digits are 22 batches of 64
    assert tracked == {0: 22, 3: 3}
