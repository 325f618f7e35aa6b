"""One evaluation: every image scored once, whoever shares the work.

Prints nothing and logs nothing.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobilenet_exp.config.schema import DataConfig, EvalConfig
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data import imagenet
from mobilenet_exp.data.datasets import ImageSet
from mobilenet_exp.data.images import ImageFiles
from mobilenet_exp.data.loaders import build_eval_loader
from mobilenet_exp.evaluation import metrics
from mobilenet_exp.evaluation.metrics import Predictions
from mobilenet_exp.machine.device import memory_format
from mobilenet_exp.machine.distributed import Team
from mobilenet_exp.models.dialect import dialect_of
from mobilenet_exp.models.profiling import Profile
from mobilenet_exp.training import engine
from mobilenet_exp.weights.loaded import Subject, check_classes

Show = Callable[[Iterable, str, int], Iterable]


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found. `left_out` and `converted` map an image's name to why."""

    answers: Predictions
    confusion: Tensor
    images: ImageSet
    scores: dict[str, float]
    left_out: dict[str, str]
    converted: dict[str, str]
    # files that the list of labels has and the folder has not
    missing: list[str]
    # against ImageNet-ReaL's labels; None if it was not asked for
    real: dict[str, float] | None


def score(
    subject: Subject,
    data: DataConfig,
    config: EvalConfig,
    *,
    device: torch.device,
    team: Team,
    show: Show,
) -> Outcome:
    """Score a network on a data set; every process of `team` returns the whole outcome.

    `show(batches, label, total)` passes batches on and may draw a bar. Raises
    InputError for other classes, and with `data.on_bad_image=fail` for an image that
    cannot be scored.
    """
    loader, images = build_eval_loader(
        data,
        workers=config.run.workers,
        pin_memory=device.type == "cuda",
        first=team.rank,
        step=team.size,
    )
    check_classes(subject, data, images.classes)
    real = None
    if config.data.real_labels:
        real = _real_labels(data, images)
    notes: dict[int, tuple[bool, str]] = {}
    batches = _noted(show(loader, "evaluate", len(loader)), notes, team, images, config)
    model = subject.model.to(device, memory_format=memory_format(config.run.memory_format))
    part, refusal = metrics.no_predictions(), None
    try:
        part = engine.predict(model, batches, device, first=team.rank, step=team.size)
    except InputError as error:
        refusal = (error.key, error.value, error.allowed)
    # all leave together, so that none waits for one that is gone
    for each in team.gather(refusal):
        if each:
            raise InputError(*each)
    answers = metrics.merge(team.gather(part))
    for each in team.gather(notes):
        notes |= each
    if not len(answers.index):
        first = next(iter(_named(notes, images, is_bad=True).items()), ("", "no images"))
        allowed = f"no image could be scored; the first: {' '.join(first)}"
        raise InputError("data.root", data.root, allowed)
    if len(answers.index) + sum(is_bad for is_bad, _ in notes.values()) != len(images.images):
        raise RuntimeError("an image was neither scored nor reported")
    return Outcome(
        answers,
        metrics.confusion_matrix(answers, subject.num_classes),
        images,
        metrics.scores(answers),
        left_out=_named(notes, images, is_bad=True),
        converted=_named(notes, images, is_bad=False),
        missing=images.images.missing if isinstance(images.images, ImageFiles) else [],
        real=metrics.score_sets(answers, real) if real else None,
    )


def _noted(
    batches: Iterable,
    notes: dict[int, tuple[bool, str]],
    team: Team,
    images: ImageSet,
    config: EvalConfig,
) -> Iterator:
    """Pass batches on and keep their notes by the image's number in the set."""
    position = team.rank
    for tensors, labels, texts in batches:
        for label, text in zip(labels.tolist(), texts, strict=True):
            if text:
                notes[position] = (label < 0, text)
            if label < 0 and config.data.on_bad_image == "fail":
                path = images.images.samples[position][0]
                allowed = f"{path} {text}; data.on_bad_image=skip leaves it out"
                raise InputError("data.on_bad_image", "fail", allowed)
            position += team.size
        yield tensors, labels


def _named(notes: dict[int, tuple[bool, str]], images: ImageSet, *, is_bad: bool) -> dict[str, str]:
    return {
        images.images.name(index): text
        for index, (bad, text) in sorted(notes.items())
        if bad is is_bad
    }


def _real_labels(data: DataConfig, images: ImageSet) -> list[set[int]]:
    if data.name != "imagenet":
        raise InputError("data.real_labels", True, "is for data=imagenet")
    return imagenet.real_labels(images.images)


def eval_name(subject: Subject, data: DataConfig, config: EvalConfig) -> str:
    """Return the evaluation's name: readable head, hash of the weights and the images."""
    identity = [
        subject.digest,
        asdict(subject.config),
        asdict(dialect_of(subject.model)),
        {**asdict(data), "batch_size": None},
        config.data.real_labels,
    ]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    if subject.folder:
        return f"{Path(subject.origin).stem}-{data.name}-r{data.resolution}-{digest}"
    net = f"{subject.config.name}-w{subject.config.width_mult:g}"
    return f"eval-{net}-r{data.resolution}-{data.name}-{digest}"


def eval_results(
    subject: Subject, data: DataConfig, outcome: Outcome, profile: Profile
) -> dict[str, Any]:
    """Return the evaluation's own entries of results.json."""
    classes = _class_titles(data, outcome)
    return {
        "weights": subject.origin,
        "weights_notes": list(subject.notes),
        "dialect": asdict(dialect_of(subject.model)),
        "model": subject.config.name,
        "width_mult": subject.config.width_mult,
        "data": data.name,
        "num_classes": subject.num_classes,
        "preprocessing": asdict(subject.preprocessing),
        **profile._asdict(),
        **outcome.scores,
        "real": outcome.real,
        "num_left_out": len(outcome.left_out),
        "num_missing": len(outcome.missing),
        "left_out": outcome.left_out,
        "converted": outcome.converted,
        "most_confused": metrics.most_confused(outcome.confusion, classes),
        "per_class": metrics.per_class(outcome.confusion, classes),
    }


def _class_titles(data: DataConfig, outcome: Outcome) -> list[str]:
    """Return a title for each of the network's answers; it may have more than the data."""
    classes = outcome.images.classes
    if data.name == "imagenet":
        names = (name.partition(",")[0] for name in imagenet.class_names())
        classes = [f"{key} {name}" for key, name in zip(classes, names, strict=True)]
    return [*classes, *(f"class {extra}" for extra in range(len(classes), len(outcome.confusion)))]


def files_of(data: DataConfig, outcome: Outcome) -> dict[str, str]:
    """Return the evaluation's tables as the text of files, by name."""
    classes = _class_titles(data, outcome)
    odd = [
        [state, name, reason]
        for state, found in (
            ("left out", outcome.left_out),
            ("converted", outcome.converted),
            ("missing", dict.fromkeys(outcome.missing, "in the labels, not in the folder")),
        )
        for name, reason in found.items()
    ]
    return {
        "odd_images.csv": _csv([["state", "image", "reason"], *odd]),
        "per_class.csv": _csv(
            [["class", "num_images", "top1"]]
            + [list(row.values()) for row in metrics.per_class(outcome.confusion, classes)]
        ),
        "confusion.csv": _csv(
            [["label \\ answer", *classes]]
            + [
                [name, *counts]
                for name, counts in zip(classes, outcome.confusion.tolist(), strict=True)
            ]
        ),
    }


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
