"""Updates: what is learned, and how gradients are clipped."""

import pytest
import states
import torch
from states import bare_state
from torch import nn

from mobilenet_exp.core.console import no_progress
from mobilenet_exp.machine.compute import Compute
from mobilenet_exp.models import build_model
from mobilenet_exp.training import step
from mobilenet_exp.training.state import TrainMeter
from mobilenet_exp.training.train import build_state, finish_epoch, make_updates

CPU = torch.device("cpu")


def test_one_batch_is_learned():
    model = build_model("v3_small", width_mult=0.35, num_classes=4, stem_stride=1, dropout=0.0)
    batch = (torch.randn(16, 3, 32, 32), torch.arange(16) % 4)
    state = bare_state(model)
    states.make_updates(state, [(batch,)] * 30)
    first, state.meter = state.meter, TrainMeter()
    assert first.num_images == 480
    states.make_updates(state, [(batch,)])
    assert state.meter.loss_sum / 16 < 0.2 < first.loss_sum / 480
    assert state.meter.correct == 16


def test_the_rate_is_set_for_every_step_from_its_number():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    seen = []

    def lr_at(step):
        seen.append(step)
        return 0.1 * step

    state = bare_state(model, lr_at=lr_at)
    state.progress.update = 7
    states.make_updates(state, [((torch.zeros(2, 3), torch.tensor([0, 1])),)] * 3)
    assert sorted(set(seen)) == [7, 8, 9]
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(0.9)


def test_reestimated_statistics_are_plain_averages():
    norm = nn.BatchNorm2d(2, momentum=0.003)
    batches = [(torch.randn(8, 2, 4, 4) * 3 + 5, torch.zeros(8)) for _ in range(5)]
    step.reestimate_bn(norm, batches[:3], Compute(CPU))
    mean = torch.stack([images.mean((0, 2, 3)) for images, _ in batches[:3]]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean)
    assert norm.momentum == 0.003


SMALL = (
    "data=fake", "data.resolution=32", "data.args.num_images=64", "data.batch_size=16",
    "train.epochs=1",
)  # fmt: skip


def test_gradients_are_clipped_to_a_norm(quick):
    session = build_state(quick(*SMALL, "train.clip_grad_norm=0.001"))
    next(iter(make_updates(session, no_progress)))
    grads = [each.grad for each in session.model.parameters()]
    assert nn.utils.get_total_norm(grads).item() <= 0.001 * 1.001


def test_channels_last_changes_no_result(quick):
    """It is the default; the figures stay within rounding of the other's."""
    losses = []
    for layout in ("contiguous", "channels_last"):
        session = build_state(quick(*SMALL, f"run.memory_format={layout}"))
        for _ in make_updates(session, no_progress):
            pass
        losses.append(finish_epoch(session)[0]["train/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert build_state(quick(*SMALL)).compute.memory_format is torch.channels_last
