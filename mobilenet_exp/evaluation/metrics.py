"""Metrics by name: figures made of one answer per image.

Sums run over the images in their order in the set, so that the figures do not
depend on batches or on how many processes shared the work.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from mobilenet_exp.core.errors import NonFiniteLossError
from mobilenet_exp.core.registry import Registry

# A metric takes `Predictions` of one image or more, and returns a number.
METRICS: Registry = Registry("run.metrics")
# those that every run has
ALWAYS = ("top1", "top5", "loss", "ece")
# bins of the calibration error
NUM_BINS = 15


@dataclass(frozen=True)
class Predictions:
    """What a network answered; row i of each tensor is one image, on the CPU.

    `index` (N,) position in the set; `label` (N,); `top` (N, k <= 5) classes, best
    first; `probs` (N, k) their softmax; `loss` (N,) cross-entropy.
    """

    index: Tensor
    label: Tensor
    top: Tensor
    probs: Tensor
    loss: Tensor


def no_predictions() -> Predictions:
    """Return the answers to no images at all."""
    count = torch.zeros(0, dtype=torch.long)
    top = torch.zeros(0, 1, dtype=torch.long)
    return Predictions(count, count, top, top.float(), count.float())


def merge(parts: Sequence[Predictions]) -> Predictions:
    """Join the answers of several processes in the set's order.

    Raises ValueError if an image was scored twice, and NonFiniteLossError if an answer is not a
    finite number, which cannot be ranked; in every process alike.
    """
    parts = [part for part in parts if len(part.index)] or [no_predictions()]
    columns = {
        part.name: torch.cat([getattr(each, part.name) for each in parts])
        for part in fields(Predictions)
    }
    order = columns["index"].argsort()
    merged = Predictions(**{key: value[order] for key, value in columns.items()})
    if len(merged.index.unique()) != len(merged.index):
        raise ValueError("an image was scored twice")
    if not merged.loss.isfinite().all():
        raise NonFiniteLossError("the evaluation's loss is not finite: the training diverged")
    return merged


def scores(answers: Predictions, more: Sequence[str] = ()) -> dict[str, float]:
    """Return the metrics `top1`, `top5`, `loss` and `ece`, `num_images`, and those named `more`.

    Needs an image. Raises InputError for a name that is not registered.
    """
    names = dict.fromkeys((*ALWAYS, *more))
    return {name: METRICS.get(name)(answers) for name in names} | {"num_images": len(answers.label)}


@METRICS.register("top1")
def top1(answers: Predictions) -> float:
    """Images whose best answer is their label, in percent."""
    return 100 * (answers.top[:, 0] == answers.label).sum().item() / len(answers.label)


@METRICS.register("top5")
def top5(answers: Predictions) -> float:
    """Images with their label among the best five answers, in percent; 100 with fewer classes."""
    hits = (answers.top == answers.label[:, None]).any(1)
    return 100 * hits.sum().item() / len(answers.label)


@METRICS.register("loss")
def loss(answers: Predictions) -> float:
    """The mean cross-entropy."""
    return answers.loss.double().sum().item() / len(answers.label)


@METRICS.register("ece")
def ece(answers: Predictions) -> float:
    """The expected calibration error (Guo et al. 2017, arXiv:1706.04599), in percent.

    It is the mean gap between confidence and accuracy over 15 equal bins of confidence,
    weighted by their images.
    """
    confidence, is_hit = answers.probs[:, 0], answers.top[:, 0] == answers.label
    # bins are open below and closed above, as in the paper
    bins = (confidence.double() * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
    gaps = torch.zeros(NUM_BINS, dtype=torch.float64)
    gaps.index_add_(0, bins, is_hit.double() - confidence.double())
    return 100 * gaps.abs().sum().item() / len(confidence)


@METRICS.register("mean_class_top1")
def mean_class_top1(answers: Predictions) -> float:
    """The mean of the top-1 of each class that has images, in percent; rare ones count alike."""
    images = answers.label.bincount()
    hits = answers.label[answers.top[:, 0] == answers.label].bincount(minlength=len(images))
    seen = images > 0
    return 100 * (hits[seen].double() / images[seen]).mean().item()


@dataclass(frozen=True)
class Confusion:
    """A sparse confusion matrix: only pairs (label, answer) that occur are stored.

    Row i of `label`, `answer` and `images` (M,) is such a pair and its number of images.
    """

    num_classes: int
    label: Tensor
    answer: Tensor
    images: Tensor

    @classmethod
    def of(cls, answers: Predictions, num_classes: int) -> "Confusion":
        """Count the pairs."""
        cells = answers.label * num_classes + answers.top[:, 0]
        pairs, images = cells.unique(return_counts=True)
        return cls(num_classes, pairs // num_classes, pairs % num_classes, images)

    def matrix(self) -> Tensor:
        """Return counts (num_classes, num_classes): row the label, column the answer."""
        counts = torch.zeros(self.num_classes, self.num_classes, dtype=torch.long)
        counts[self.label, self.answer] = self.images
        return counts

    def totals(self) -> Tensor:
        """Return the images of each class (num_classes,)."""
        return torch.zeros(self.num_classes, dtype=torch.long).index_add(0, self.label, self.images)

    def hits(self) -> Tensor:
        """Return the images of each class that were answered rightly (num_classes,)."""
        is_hit = self.label == self.answer
        hits = torch.zeros(self.num_classes, dtype=torch.long)
        return hits.index_add(0, self.label[is_hit], self.images[is_hit])


def per_class(confusion: Confusion, classes: Sequence[str]) -> list[dict[str, object]]:
    """Return name, `num_images` and `top1` (percent; None without images) of each class."""
    totals, hits = confusion.totals().tolist(), confusion.hits().tolist()
    return [
        {"class": name, "num_images": total, "top1": 100 * hit / total if total else None}
        for name, total, hit in zip(classes, totals, hits, strict=True)
    ]


def most_confused(
    confusion: Confusion, classes: Sequence[str], count: int = 5
) -> list[list[str | int]]:
    """Return the most frequent mistakes as [label, answer, images]."""
    is_wrong = confusion.label != confusion.answer
    pairs = (confusion.label[is_wrong], confusion.answer[is_wrong], confusion.images[is_wrong])
    order = pairs[2].argsort(descending=True, stable=True)[:count]
    return [
        [classes[label], classes[answer], images]
        for label, answer, images in zip(*(each[order].tolist() for each in pairs), strict=True)
    ]


def score_sets(answers: Predictions, allowed: Sequence[set[int] | None]) -> dict[str, float]:
    """Score against several right labels an image, by the image's index (ImageNet-ReaL).

    Images whose set is empty or None are left out. Returns `top1`, `top5`, `num_images`.
    """
    hits1 = hits5 = num_images = 0
    for index, top in zip(answers.index.tolist(), answers.top.tolist(), strict=True):
        right = allowed[index]
        if not right:
            continue
        num_images += 1
        hits1 += top[0] in right
        hits5 += not right.isdisjoint(top)
    if not num_images:
        return {"top1": 0.0, "top5": 0.0, "num_images": 0}
    return {
        "top1": 100 * hits1 / num_images,
        "top5": 100 * hits5 / num_images,
        "num_images": num_images,
    }
