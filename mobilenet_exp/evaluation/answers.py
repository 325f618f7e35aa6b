"""A network's answers to a set of images as tables: each image's, each class's, confusions."""

from typing import Any

from torch.utils.data import Dataset

from mobilenet_exp.core.text import as_csv
from mobilenet_exp.datasets import imagenet
from mobilenet_exp.datasets.images import name_of
from mobilenet_exp.evaluation import metrics

# the table of each image's label and answers
PREDICTIONS = "predictions.csv"
# with more classes, confusions are listed instead of laid out in a square
MATRIX_CLASSES = 2000


def class_titles(classes: list[str], num_answers: int, *, is_imagenet: bool) -> list[str]:
    """Return a title for each of the network's answers; it may have more than the data."""
    if is_imagenet:
        names = (name.partition(",")[0] for name in imagenet.class_names())
        classes = [f"{key} {name}" for key, name in zip(classes, names, strict=True)]
    return [*classes, *(f"class {extra}" for extra in range(len(classes), num_answers))]


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
    columns = (answers.index, answers.label, answers.top, 100 * answers.probs, answers.loss)
    rows = [
        [
            name_of(images, index),
            classes[label],
            *(
                word
                for answer, percent in zip(top, probs, strict=True)
                for word in (classes[answer], f"{percent:.2f}")
            ),
            f"{loss:.4f}",
        ]
        for index, label, top, probs, loss in zip(
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
