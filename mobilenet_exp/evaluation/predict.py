"""A network's answers to images."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mobilenet_exp.evaluation.metrics import Predictions, no_predictions
from mobilenet_exp.machine.compute import Precision, autocast

# images and labels, and whatever a loader adds to them
Batches = Iterable[tuple[Tensor, ...]]


@torch.inference_mode()
def predict(
    model: nn.Module,
    batches: Batches,
    device: torch.device,
    *,
    precision: Precision = Precision.FLOAT32,
    first: int = 0,
    step: int = 1,
) -> Predictions:
    """Answer every image once, including those of an incomplete last batch.

    Images count as number `first`, `first + step`, ... of their set; those labelled -1
    are skipped. The model is left in eval mode.
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
        with autocast(device, precision):
            logits = model(images).float()
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices
        answers.append(
            (
                index,
                labels,
                top,
                logits.softmax(1).gather(1, top),
                nn.functional.cross_entropy(logits, labels, reduction="none"),
            )
        )
    if not answers:
        return no_predictions()
    return Predictions(*(torch.cat(part).cpu() for part in zip(*answers, strict=True)))
