"""One update of the weights, from a batch to the optimizer's step.

Knows no config, no files, no dashboard. Read `update` first: it is a step of training.
"""

import itertools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import update_bn

from mobilenet_exp.core.errors import NonFiniteLossError, known_to_all
from mobilenet_exp.data.mixing import Mixing
from mobilenet_exp.evaluation.predict import Batches
from mobilenet_exp.machine.arithmetic import Precision, autocast
from mobilenet_exp.models.rounding import Rounding
from mobilenet_exp.training.distillation import Teacher
from mobilenet_exp.training.ema import Average

# Updates skipped one after the other before a run counts as diverged.
MAX_SKIPS = 20


@dataclass
class Learner:
    """What an update changes, and the rules it follows."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    # learning rate of an update, by its number from 0
    lr_at: Callable[[int], float]
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    device: torch.device
    # `model` itself, or what stands around it (wrapping.py)
    wrapped: Callable[[Tensor], Tensor]
    # what exchanges gradients between processes, where there are several
    exchange: DistributedDataParallel | None = None
    memory_format: torch.memory_format = torch.contiguous_format
    precision: Precision = Precision.FLOAT32
    # scales losses whose gradients `precision` cannot hold
    scaler: torch.amp.GradScaler | None = None
    # whether the passes are recorded as CUDA graphs
    uses_graphs: bool = False
    # parts that a batch is cut into, one after the other
    accumulate: int = 1
    # what dropout follows, with the step; the process's rank keeps processes apart
    seed: int = 0
    rank: int = 0
    mixing: Mixing | None = None
    teacher: Teacher | None = None
    average: Average | None = None
    # `model` as it answers in 8 bits, where it learns to
    rounding: Rounding | None = None
    clip_grad_norm: float | None = None
    frozen_bn: bool = False
    # everything but the classifier is frozen
    is_probe: bool = False
    skips_nonfinite: bool = False


@dataclass
class TrainMeter:
    """Sums over the updates of an epoch, of this process's images; on the CPU or device."""

    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(()))
    correct: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.long))
    num_images: int = 0
    num_skipped: int = 0
    skipped_in_a_row: int = 0
    # of the updates, and of these spent waiting for images
    seconds: float = 0.0
    waiting: float = 0.0
    # of the epoch's last update
    grad_norm: float | None = None
    # images that could not be read, with the reason, and those left on their side
    left_out: dict[str, str] = field(default_factory=dict)
    num_unturned: int = 0

    def note(self, left_out: dict[str, str], num_unturned: int = 0) -> None:
        """Keep which images of a batch could not be read, and how many were left on their side."""
        self.left_out |= left_out
        self.num_unturned += num_unturned

    def to(self, device: torch.device) -> None:
        self.loss_sum, self.correct = self.loss_sum.to(device), self.correct.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums on the CPU, for other processes and files."""
        return asdict(self) | {"loss_sum": self.loss_sum.cpu(), "correct": self.correct.cpu()}


def update(learner: Learner, parts: tuple, step: int, meter: TrainMeter) -> None:
    """Make one update from the parts of its batch, and add its figures to `meter`.

    `step` is the number of updates made before. An update whose gradients are not finite
    is left out where `skips_nonfinite` says so; NonFiniteLossError is raised after
    MAX_SKIPS of them in a row. That and a scaler wait for the device; nothing else here does.
    """
    for group in learner.optimizer.param_groups:
        group["lr"] = learner.lr_at(step)
    kept = _kept_statistics(learner)
    learner.optimizer.zero_grad(set_to_none=True)
    loss_sum, correct = 0, 0
    for number, (images, labels) in enumerate(parts):
        # dropout's masks follow from the seed, the step and the part alone
        torch.manual_seed(_mixed(learner.seed, step, learner.rank * len(parts) + number))
        with exchange_of_gradients(learner, is_last=number == len(parts) - 1):
            loss, hits = learn_part(learner, images, labels, step)
        loss_sum, correct = loss_sum + loss * len(labels), correct + hits
    is_good = clip_gradients(learner)
    move(learner, is_good=is_good)
    if is_good:
        if learner.average:
            learner.average.update(step)
        meter.skipped_in_a_row = 0
        meter.loss_sum += loss_sum
        meter.correct += correct
        meter.num_images += sum(len(labels) for _, labels in parts)
    else:
        _restore_statistics(kept)
        _count_skipped(meter, step)


def learn_part(
    learner: Learner, images: Tensor, labels: Tensor, step: int
) -> tuple[Tensor, Tensor]:
    """Add the gradients of one part; return its mean loss and its number of right answers."""
    images = images.to(learner.device, non_blocking=True, memory_format=learner.memory_format)
    labels = labels.to(learner.device, non_blocking=True)
    targets = labels
    if learner.mixing:
        images, targets = learner.mixing(images, labels, step)
    with autocast(learner.device, learner.precision, caches_weights=not learner.uses_graphs):
        logits = learner.wrapped(images)
        loss = learner.loss_fn(logits, targets)
        if learner.teacher:
            loss = learner.teacher.join(loss, logits, images)
    part = loss / learner.accumulate
    (learner.scaler.scale(part) if learner.scaler else part).backward()
    return loss.detach(), (logits.detach().argmax(1) == labels).sum()


def exchange_of_gradients(learner: Learner, *, is_last: bool) -> AbstractContextManager:
    """Let several processes exchange gradients once per update: with the last part."""
    if learner.exchange and not is_last:
        return learner.exchange.no_sync()
    return nullcontext()


def clip_gradients(learner: Learner) -> bool:
    """Clip the gradients where that is asked for; return whether to use them.

    Only where updates with non-finite gradients are skipped does this wait for the device.
    """
    if learner.clip_grad_norm is None and not learner.skips_nonfinite:
        return True
    if learner.scaler:
        learner.scaler.unscale_(learner.optimizer)
    params = [each for each in learner.model.parameters() if each.grad is not None]
    norm = nn.utils.clip_grad_norm_(params, learner.clip_grad_norm or math.inf)
    # the same in every process: gradients have been exchanged
    return not learner.skips_nonfinite or math.isfinite(norm.item())


def gradient_norm(learner: Learner) -> float:
    """Return the norm of the last update's gradients, after clipping; waits for the device."""
    grads = [each.grad for each in learner.model.parameters() if each.grad is not None]
    return nn.utils.get_total_norm(grads).item() if grads else math.nan


def move(learner: Learner, *, is_good: bool) -> None:
    """Let the optimizer move the weights along good gradients.

    With a scaler that is left out where they overflow, and their scale falls.
    """
    if learner.scaler is None:
        if is_good:
            learner.optimizer.step()
        return
    if is_good:
        learner.scaler.step(learner.optimizer)
    learner.scaler.update()


def set_training_mode(learner: Learner) -> None:
    """Put the network into training mode, except what is frozen."""
    if learner.rounding:
        learner.rounding.train()
    learner.model.train(not learner.is_probe)
    if learner.is_probe:
        learner.model.dropout.train()
    if learner.frozen_bn:
        for module in learner.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def _kept_statistics(learner: Learner) -> list[tuple[Tensor, Tensor]]:
    """Copy BatchNorm's statistics, which a bad batch spoils before it is known to be bad.

    And the ranges that are rounded to.
    """
    if not learner.skips_nonfinite:
        return []
    whole = learner.rounding or learner.model
    return [(buffer, buffer.clone()) for buffer in whole.buffers()]


def _restore_statistics(kept: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, before in kept:
        buffer.copy_(before)


def _count_skipped(meter: TrainMeter, step: int) -> None:
    meter.num_skipped += 1
    meter.skipped_in_a_row += 1
    if meter.skipped_in_a_row >= MAX_SKIPS:
        problem = f"{MAX_SKIPS} updates in a row, up to step {step}, were not finite"
        raise known_to_all(NonFiniteLossError(problem))


def _mixed(seed: int, step: int, part: int) -> int:
    # primes keep the triples apart
    return ((seed * 1_000_003 + step) * 10_007 + part) % 2**63


def is_finite(model: nn.Module) -> bool:
    """Return whether all weights and statistics are finite numbers."""
    tensors = [each for each in model.state_dict().values() if each.is_floating_point()]
    return math.isfinite(nn.utils.get_total_norm(tensors).item())


def reestimate_bn(
    model: nn.Module,
    batches: Batches,
    device: torch.device,
    *,
    num_batches: int,
    precision: Precision = Precision.FLOAT32,
) -> None:
    """Replace BatchNorm's running statistics by plain averages over `num_batches`.

    With the papers' momentum (0.01 and less) running averages need thousands of steps
    to settle; without this, a short run that has learned would evaluate at chance.
    """
    with autocast(device, precision):
        update_bn(itertools.islice(batches, num_batches), model, device)
