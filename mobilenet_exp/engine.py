"""One epoch of training, one evaluation. Knows no config, no files and no dashboard."""

import itertools
import math
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from mobilenet_exp.errors import InputError
from mobilenet_exp.metrics import Predictions, no_predictions, scores

# images and labels, and whatever a loader adds to them
Batches = Iterable[tuple[Tensor, Tensor]]
# Steps between two looks at the loss; each look waits for the device.
CHECK_EVERY = 50


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number; the message says where."""


def select_device(name: str) -> torch.device:
    """Resolve `auto` to cuda, mps or cpu, in this order. Raises InputError if absent."""
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, is_present in present.items() if is_present)
    if not present[name]:
        here = ", ".join(kind for kind, is_present in present.items() if is_present)
        raise InputError("run.device", name, f"not on this machine; here: auto, {here}")
    return torch.device(name)


def autocast(device: torch.device) -> torch.autocast:
    """bf16 on CUDA; on a CPU it is slower than float32, so nothing there."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def train_one_epoch(
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    lr_at: Callable[[int], float],
    *,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
    first_step: int,
) -> dict[str, float]:
    """Run every batch once; `first_step` is the number of updates made before.

    Returns `loss` (mean over images), `top1` (percent, on the augmented images, while
    the weights move), `lr` of the last step, `images_per_s` and `num_steps`. Raises
    NonFiniteLossError within CHECK_EVERY steps of the first bad loss.
    """
    model.train()
    loss_sum = torch.zeros((), device=device)
    correct = torch.zeros((), device=device, dtype=torch.long)
    num_images, num_steps, lr = 0, 0, math.nan
    start = time.perf_counter()
    for step, (images, labels) in enumerate(batches, first_step):
        images = images.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        lr = lr_at(step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        with autocast(device):
            logits = model(images)
            loss = loss_fn(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach() * len(labels)
        correct += (logits.detach().argmax(1) == labels).sum()
        num_images += len(labels)
        num_steps += 1
        if num_steps % CHECK_EVERY == 0:
            _check_finite(loss_sum, step, lr)
    _check_finite(loss_sum, first_step + num_steps - 1, lr)
    return {
        "loss": loss_sum.item() / num_images,
        "top1": 100 * correct.item() / num_images,
        "lr": lr,
        "images_per_s": num_images / (time.perf_counter() - start),
        "num_steps": num_steps,
    }


def _check_finite(loss_sum: Tensor, step: int, lr: float) -> None:
    if not math.isfinite(loss_sum.item()):
        raise NonFiniteLossError(
            f"the loss is not finite at step {step} or up to {CHECK_EVERY - 1} before, lr {lr:.3g}"
        )


def evaluate(model: nn.Module, batches: Batches, device: torch.device) -> dict[str, float]:
    """Score every image once: see `metrics.scores`; raises what `predict` raises."""
    return scores(predict(model, batches, device))


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
