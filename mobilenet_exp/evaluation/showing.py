"""An evaluation's answers as pictures: a sheet in its folder, tables and a matrix in W&B."""

import csv
import io
from collections import Counter

from torch.utils.data import Dataset

from mobilenet_exp.core import console
from mobilenet_exp.core.text import plural
from mobilenet_exp.evaluation.answers import PREDICTIONS
from mobilenet_exp.evaluation.mistakes import Mistake, draw_sheet, worst_mistakes
from mobilenet_exp.tracking.tracker import Tracker

ERRORS = "errors.png"
# with more classes, W&B's matrix cannot be read any more
MATRIX_CLASSES = 50


def show_answers(
    tracker: Tracker, subfolder: str, section: str, images: Dataset, *, draws: bool = True
) -> None:
    """Show what a predictions.csv says, which lies in `subfolder` of the tracker's folder.

    `section` is that of W&B's panels. Images whose answers are worst are drawn beside the
    file, if there are any and `draws` says so.
    """
    folder = tracker.folder / subfolder
    try:
        text = (folder / PREDICTIONS).read_text(encoding="utf-8")
    except OSError:
        # a run that began before there were any
        return
    rows = list(csv.DictReader(io.StringIO(text)))
    sheet = f"{subfolder}/{ERRORS}" if subfolder else ERRORS
    if draws:
        with console.best_effort(sheet):
            mistakes = worst_mistakes(text, images)
            title = f"the worst {len(mistakes)} of {plural(len(rows), 'validation image')}"
            _show_mistakes(tracker, sheet, section, mistakes, title)
    with console.best_effort(f"{section}/per_class"):
        _show_classes(tracker, section, rows)


def _show_mistakes(
    tracker: Tracker, sheet: str, section: str, mistakes: list[Mistake], title: str
) -> None:
    if not mistakes:
        # of an earlier epoch or evaluation
        (tracker.folder / sheet).unlink(missing_ok=True)
        return
    path = tracker.draw(sheet, lambda path: draw_sheet(mistakes, path, title))
    tracker.picture(f"{section}/errors_sheet", path)
    columns = ["picture", "image", "label", "answer", "percent", "loss"]
    tracker.image_table(f"{section}/errors", columns, [list(each) for each in mistakes])


def _show_classes(tracker: Tracker, section: str, rows: list[dict[str, str]]) -> None:
    images = Counter(row["label"] for row in rows)
    right = Counter(row["label"] for row in rows if row["label"] == row["answer1"])
    cells = [[name, count, 100 * right[name] / count] for name, count in sorted(images.items())]
    tracker.table(f"{section}/per_class", ["class", "num_images", "top1"], cells)
    classes = sorted(images | Counter(row["answer1"] for row in rows))
    if len(classes) <= MATRIX_CLASSES:
        numbers = {name: number for number, name in enumerate(classes)}
        labels = [numbers[row["label"]] for row in rows]
        answers = [numbers[row["answer1"]] for row in rows]
        tracker.confusion_matrix(f"{section}/confusion", labels, answers, classes)
