"""What an evaluation leaves behind: its name, its results, its tables as files."""

import hashlib
import json
from dataclasses import MISSING, asdict
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from mobilenet_exp.config.schema import EvalImages
from mobilenet_exp.core.text import as_csv
from mobilenet_exp.datasets import imagenet
from mobilenet_exp.datasets.images import name_of
from mobilenet_exp.evaluation import metrics
from mobilenet_exp.evaluation.scoring import EvalResult
from mobilenet_exp.models.profiling import Profile
from mobilenet_exp.tracking.sweeps import file_name
from mobilenet_exp.weights.loaded import LoadedModel

# the table of each image's label and answers
PREDICTIONS = "predictions.csv"
# with more classes, confusions are listed instead of laid out in a square
MATRIX_CLASSES = 2000


def eval_name(loaded: LoadedModel, data: EvalImages, precision: str) -> str:
    """Return the evaluation's name: a readable head, and a hash of weights and images."""
    identity: list[Any] = [
        loaded.digest,
        asdict(loaded.config),
        loaded.variant,
        _named(data),
    ]
    if precision != "float32":
        identity.append(precision)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    if loaded.folder:
        return f"{Path(loaded.origin).stem}-{data.name}-r{data.resolution}-{digest}"
    net = f"{loaded.config.title}-w{loaded.config.width_mult:g}"
    return f"eval-{net}-r{data.resolution}-{data.name}-{digest}"


def photos_name(loaded: LoadedModel, place: str) -> str:
    """Return the name of a folder for what a network sees on photos."""
    where = Path(place).resolve()
    identity = json.dumps([loaded.digest, str(where)])
    digest = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"photos-{file_name([where.name])}-{digest}"


def _named(data: EvalImages) -> dict[str, Any]:
    """Return what names the images of an evaluation: not how they are read, nor new defaults."""
    found = {**asdict(data), "batch_size": None, "on_bad_image": None}
    later = {"exif": "ignore", "resize": "fast", "val_share": None, "val_seed": 0}
    return {key: value for key, value in found.items() if value != later.get(key, MISSING)}


def eval_label(loaded: LoadedModel, data: EvalImages) -> str:
    """Return the evaluation's name for people: net, width, side, data, and which weights."""
    net = f"{loaded.config.title}-w{loaded.config.width_mult:g}-r{data.resolution}-{data.name}"
    words = f"eval {net} {Path(loaded.origin).name}"
    return words if loaded.epoch is None else f"{words} epoch {loaded.epoch}"


def eval_results(
    loaded: LoadedModel, data: EvalImages, found: EvalResult, profile: Profile
) -> dict[str, Any]:
    """Return the evaluation's own entries of results.json."""
    classes = _titles(data, found)
    return {
        "weights": loaded.origin,
        "weights_notes": list(loaded.notes),
        "dialect": loaded.variant,
        "model": loaded.config.title,
        "width_mult": loaded.config.width_mult,
        "data": data.name,
        "num_classes": loaded.num_classes,
        "preprocessing": asdict(loaded.preprocessing),
        **profile._asdict(),
        **found.scores,
        "real": found.real,
        "num_left_out": len(found.left_out),
        "num_missing": len(found.missing),
        "left_out": found.left_out,
        "converted": found.converted,
        "others": found.others,
        "most_confused": metrics.most_confused(found.confusion, classes),
        "per_class": metrics.per_class(found.confusion, classes),
    }


def _titles(data: EvalImages, found: EvalResult) -> list[str]:
    return class_titles(found.images.classes, found.num_classes, is_imagenet=data.is_imagenet)


def class_titles(classes: list[str], num_answers: int, *, is_imagenet: bool) -> list[str]:
    """Return a title for each of the network's answers; it may have more than the data."""
    if is_imagenet:
        names = (name.partition(",")[0] for name in imagenet.class_names())
        classes = [f"{key} {name}" for key, name in zip(classes, names, strict=True)]
    return [*classes, *(f"class {extra}" for extra in range(len(classes), num_answers))]


def files_of(data: EvalImages, found: EvalResult) -> dict[str, str]:
    """Return the evaluation's tables as the text of files, by name."""
    odd = [
        [state, name, reason]
        for state, images in (
            ("left out", found.left_out),
            ("converted", found.converted),
            ("no image", found.others),
            ("missing", dict.fromkeys(found.missing, "has a label but is not in the folder")),
        )
        for name, reason in images.items()
    ]
    tables = answer_files(found.images.images, found.answers, _titles(data, found))
    return {"odd_images.csv": as_csv([["state", "image", "reason"], *odd]), **tables}


def answer_files(
    images: Dataset, answers: metrics.Predictions, classes: list[str]
) -> dict[str, str]:
    """Return a network's answers to a set of images as the text of tables, by file name.

    `classes` has a title for each answer that the network can give.
    """
    confusion = metrics.Confusion.of(answers, len(classes))
    rows = [list(row.values()) for row in metrics.per_class(confusion, classes)]
    return {
        PREDICTIONS: as_csv(_prediction_rows(images, answers, classes)),
        "per_class.csv": as_csv([["class", "num_images", "top1"], *rows]),
        "confusion.csv": as_csv(_confusion_rows(confusion, classes)),
    }


def _prediction_rows(
    images: Dataset, answers: metrics.Predictions, classes: list[str]
) -> list[list[Any]]:
    """Return a row for each image: its label, the best answers with their percent, its loss."""
    best = range(1, answers.top.shape[1] + 1)
    head = ["image", "label", *(word for n in best for word in (f"answer{n}", f"percent{n}"))]
    columns = (answers.index, answers.label, answers.top, 100 * answers.shares, answers.loss)
    rows = [
        [
            name_of(images, index),
            classes[label],
            *(
                word
                for answer, percent in zip(top, shares, strict=True)
                for word in (classes[answer], f"{percent:.2f}")
            ),
            f"{loss:.4f}",
        ]
        for index, label, top, shares, loss in zip(
            *(column.tolist() for column in columns), strict=True
        )
    ]
    return [[*head, "loss"], *rows]


def _confusion_rows(confusion: metrics.Confusion, classes: list[str]) -> list[list[Any]]:
    """Return a matrix, or with very many classes a row for each pair that happened."""
    if len(classes) <= MATRIX_CLASSES:
        square = zip(classes, confusion.matrix().tolist(), strict=True)
        return [["label \\ answer", *classes], *([name, *counts] for name, counts in square)]
    pairs = (confusion.label.tolist(), confusion.answer.tolist(), confusion.images.tolist())
    rows = ([classes[label], classes[answer], n] for label, answer, n in zip(*pairs, strict=True))
    return [["label", "answer", "num_images"], *rows]
