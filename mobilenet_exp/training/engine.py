"""Updates, evaluations, BatchNorm's statistics. Knows no config, no files, no dashboard."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from mobilenet_exp.core.errors import NonFiniteLossError
from mobilenet_exp.data.mixing import Mixing
from mobilenet_exp.evaluation.metrics import Predictions, no_predictions
from mobilenet_exp.machine.device import autocast
from mobilenet_exp.training.distillation import Teacher
from mobilenet_exp.training.ema import Average

# images and labels, and whatever a loader adds to them
Batches = Iterable[tuple[Tensor, Tensor]]
# Steps between two looks at the loss on a GPU; each look waits for the device.
CHECK_EVERY = 50
# Updates skipped one after the other before a run counts as diverged.
MAX_SKIPS = 20


@dataclass
class Learner:
    """What an update changes, and the rules it follows."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    lr_at: Callable[[int], float]
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    device: torch.device
    # `model` again, or what joins the gradients of several processes around it
    wrapped: nn.Module
    memory_format: torch.memory_format = torch.contiguous_format
    # parts of a batch, one after the other
    accumulate: int = 1
    # what dropout follows, with the step; the process's rank keeps processes apart
    seed: int = 0
    rank: int = 0
    mixing: Mixing | None = None
    teacher: Teacher | None = None
    average: Average | None = None
    clip_grad_norm: float | None = None
    frozen_bn: bool = False
    # all but the classifier is frozen
    is_probe: bool = False
    skips_nonfinite: bool = False


@dataclass
class Tally:
    """Sums over the updates of an epoch, of this process's images; on the CPU or device."""

    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(()))
    correct: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.long))
    num_images: int = 0
    num_skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0

    def to(self, device: torch.device) -> "Tally":
        self.loss_sum, self.correct = self.loss_sum.to(device), self.correct.to(device)
        return self


def make_updates(
    learner: Learner, batches: Batches, tally: Tally, *, first_step: int
) -> Iterator[None]:
    """Make an update of every `accumulate` batches, and yield after each.

    `first_step` is the number of updates made before. It waits for the device nowhere,
    unless non-finite updates are skipped; then it raises NonFiniteLossError after
    MAX_SKIPS of them in a row.
    """
    _set_mode(learner)
    tally.to(learner.device)
    parts_of_updates = zip(*[iter(batches)] * learner.accumulate, strict=True)
    for step, parts in enumerate(parts_of_updates, first_step):
        for group in learner.optimizer.param_groups:
            group["lr"] = learner.lr_at(step)
        _update(learner, parts, step, tally)
        yield


def _set_mode(learner: Learner) -> None:
    learner.model.train(not learner.is_probe)
    if learner.is_probe:
        learner.model.dropout.train()
    if learner.frozen_bn:
        for module in learner.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def _update(learner: Learner, parts: tuple, step: int, tally: Tally) -> None:
    """Make one update, unless its gradients are not finite and those are skipped."""
    # BatchNorm's statistics, which a bad batch spoils before it is known to be bad
    statistics = list(learner.model.buffers()) if learner.skips_nonfinite else []
    kept = [each.clone() for each in statistics]
    learner.optimizer.zero_grad(set_to_none=True)
    loss_sum, correct = 0, 0
    for number, (images, labels) in enumerate(parts):
        # dropout's masks follow from the seed, the step and the part alone
        torch.manual_seed(_mixed(learner.seed, step, learner.rank * len(parts) + number))
        loss, hits = _learn(learner, images, labels, step, is_last=number == len(parts) - 1)
        loss_sum, correct = loss_sum + loss * len(labels), correct + hits
    if _is_to_skip(learner):
        for each, before in zip(statistics, kept, strict=True):
            each.copy_(before)
        tally.num_skipped += 1
        tally.skipped_in_a_row += 1
        if tally.skipped_in_a_row >= MAX_SKIPS:
            allowed = f"{MAX_SKIPS} updates in a row, up to step {step}, were not finite"
            raise NonFiniteLossError(allowed)
        return
    learner.optimizer.step()
    if learner.average:
        learner.average.update(learner.model, step)
    tally.skipped_in_a_row = 0
    tally.loss_sum += loss_sum
    tally.correct += correct
    tally.num_images += sum(len(labels) for _, labels in parts)


def _learn(
    learner: Learner, images: Tensor, labels: Tensor, step: int, *, is_last: bool
) -> tuple[Tensor, Tensor]:
    """Add the gradients of one part; return its mean loss and the images answered rightly."""
    images = images.to(learner.device, non_blocking=True, memory_format=learner.memory_format)
    labels = labels.to(learner.device, non_blocking=True)
    targets = labels
    if learner.mixing:
        images, targets = learner.mixing(images, labels, step)
    # several processes exchange gradients once an update
    waits = not is_last and learner.wrapped is not learner.model
    with learner.wrapped.no_sync() if waits else nullcontext():
        with autocast(learner.device):
            logits = learner.wrapped(images)
            loss = learner.loss_fn(logits, targets)
            if learner.teacher:
                loss = learner.teacher.join(loss, logits, images)
        (loss / learner.accumulate).backward()
    return loss.detach(), (logits.detach().argmax(1) == labels).sum()


def _is_to_skip(learner: Learner) -> bool:
    """Clip the gradients, and say whether they are to be skipped: then this waits."""
    if learner.clip_grad_norm is None and not learner.skips_nonfinite:
        return False
    params = [each for each in learner.model.parameters() if each.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(params, learner.clip_grad_norm or math.inf)
    # the same in every process, which have exchanged their gradients
    return learner.skips_nonfinite and not math.isfinite(norm.item())


def _mixed(seed: int, step: int, part: int) -> int:
    # primes keep the triples apart
    return ((seed * 1_000_003 + step) * 10_007 + part) % 2**63


def is_finite(model: nn.Module) -> bool:
    """Return whether all weights and statistics are finite numbers."""
    tensors = [each for each in model.state_dict().values() if each.is_floating_point()]
    return math.isfinite(nn.utils.get_total_norm(tensors).item())


@torch.inference_mode()
def predict(
    model: nn.Module, batches: Batches, device: torch.device, *, first: int = 0, step: int = 1
) -> Predictions:
    """Answer every image once, the ragged last batch included.

    Images count as number `first`, `first + step`, ... of their set; those labelled -1
    are passed over. The model is left in eval mode. Raises NonFiniteLossError if the
    network answers with anything but finite numbers: such answers have no rank.
    """
    model.eval()
    answers, position = [], 0
    for images, labels, *_ in batches:
        index = first + step * torch.arange(position, position + len(labels))
        position += len(labels)
        wanted = labels >= 0
        if not wanted.all():
            images, labels, index = images[wanted], labels[wanted], index[wanted]
        if not len(labels):
            continue
        images = images.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        with autocast(device):
            logits = model(images).float()
        answers.append(
            (
                index,
                labels,
                logits.topk(min(5, logits.shape[1]), dim=1).indices,
                logits.softmax(1).amax(1),
                nn.functional.cross_entropy(logits, labels, reduction="none"),
            )
        )
    if not answers:
        return no_predictions()
    predictions = Predictions(*(torch.cat(part).cpu() for part in zip(*answers, strict=True)))
    if not predictions.loss.isfinite().all():
        raise NonFiniteLossError("the evaluation's loss is not finite: the training diverged")
    return predictions


def reestimate_bn(
    model: nn.Module, batches: Batches, device: torch.device, *, num_batches: int
) -> None:
    """Replace BatchNorm's running statistics by plain averages over `num_batches`.

    With the papers' momentum (0.01 and less) running averages need thousands of steps
    to arrive; a short run that has learned would evaluate at chance.
    """
    with autocast(device):
        update_bn(itertools.islice(batches, num_batches), model, device)
