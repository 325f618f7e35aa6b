"""Updates: what is learned, and how gradients are clipped."""

import pytest
import torch
from torch import nn

from mobilenet_exp.core.console import no_progress
from mobilenet_exp.models import build_model
from mobilenet_exp.training import engine
from mobilenet_exp.training.loop import finish_epoch, make_updates
from mobilenet_exp.training.session import build_session

CPU = torch.device("cpu")


def _learner(model, lr_at=lambda step: 0.05, **rules) -> engine.Learner:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    return engine.Learner(model, optimizer, lr_at, nn.CrossEntropyLoss(), CPU, model, **rules)


def _train(learner, batches, first_step=0) -> engine.TrainMeter:
    meter = engine.TrainMeter()
    engine.set_training_mode(learner)
    for step, batch in enumerate(batches, first_step):
        engine.update(learner, (batch,), step, meter)
    return meter


def test_one_batch_is_learned():
    model = build_model("v3_small", width_mult=0.35, num_classes=4, stem_stride=1, dropout=0.0)
    batch = (torch.randn(16, 3, 32, 32), torch.arange(16) % 4)
    first = _train(_learner(model), [batch] * 30)
    assert first.num_images == 480
    last = _train(_learner(model), [batch])
    assert last.loss_sum / 16 < 0.2 < first.loss_sum / 480
    assert last.correct == 16


def test_the_rate_is_set_for_every_step_from_its_number():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    seen = []

    def lr_at(step):
        seen.append(step)
        return 0.1 * step

    learner = _learner(model, lr_at)
    _train(learner, [(torch.zeros(2, 3), torch.tensor([0, 1]))] * 3, first_step=7)
    assert sorted(set(seen)) == [7, 8, 9]
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(0.9)


def test_reestimated_statistics_are_plain_averages():
    norm = nn.BatchNorm2d(2, momentum=0.003)
    batches = [(torch.randn(8, 2, 4, 4) * 3 + 5, torch.zeros(8)) for _ in range(5)]
    engine.reestimate_bn(norm, batches, CPU, num_batches=3)
    mean = torch.stack([images.mean((0, 2, 3)) for images, _ in batches[:3]]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean)
    assert norm.momentum == 0.003


SMALL = (
    "data=fake", "data.resolution=32", "data.args.num_images=64", "data.batch_size=16",
    "train.epochs=1",
)  # fmt: skip


def test_gradients_are_clipped_to_a_norm(quick):
    session = build_session(quick(*SMALL, "train.clip_grad_norm=0.001"))
    next(iter(make_updates(session, no_progress)))
    grads = [each.grad for each in session.model.parameters()]
    assert nn.utils.get_total_norm(grads).item() <= 0.001 * 1.001


def test_channels_last_changes_no_result(quick):
    """It is the default; the figures stay within rounding of the other's."""
    losses = []
    for layout in ("contiguous", "channels_last"):
        session = build_session(quick(*SMALL, f"run.memory_format={layout}"))
        for _ in make_updates(session, no_progress):
            pass
        losses.append(finish_epoch(session)[0]["train/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert build_session(quick(*SMALL)).learner.memory_format is torch.channels_last
