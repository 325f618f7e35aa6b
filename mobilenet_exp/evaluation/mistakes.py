"""The images that a network gets most wrong: which they are, and a sheet of their pictures."""

import csv
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from mobilenet_exp.core.text import printable
from mobilenet_exp.datasets.images import name_of, open_item

# how many are shown, and their longest side in pixels
MOST, SIDE = 24, 160
COLUMNS = 6
# of the sheet, in pixels: width of a cell, height of its text and of the title; dots per inch
WIDE, TEXT, HEAD, DPI = 176, 44, 28, 110
TALL = SIDE + TEXT + 8
# characters of a class name or file name above a picture
MAX_NAME = 26


class Mistake(NamedTuple):
    """A picture (h, w, 3) uint8 of at most SIDE pixels, and what was answered to its image.

    `image` is its name, `percent` the answer's probability, `loss` the cross-entropy.
    """

    picture: np.ndarray
    image: str
    label: str
    answer: str
    percent: float
    loss: float


def worst_mistakes(predictions: str, images: Dataset) -> list[Mistake]:
    """Return the wrongly answered images with the largest losses, from a predictions.csv.

    `images` is the set that was scored; images that it no longer holds, or that can no
    longer be read, are passed over.
    """
    rows = [row for row in csv.DictReader(io.StringIO(predictions)) if _is_wrong(row)]
    rows.sort(key=lambda row: -float(row["loss"]))
    if not rows:
        return []
    numbers = {name_of(images, index): index for index in range(len(images))}
    found: list[Mistake] = []
    for row in rows:
        if len(found) == MOST:
            break
        number = numbers.get(row["image"])
        picture = None if number is None else _picture(images, number)
        if picture is not None:
            share, loss = float(row["percent1"]), float(row["loss"])
            found.append(Mistake(picture, row["image"], row["label"], row["answer1"], share, loss))
    return found


def _is_wrong(row: dict[str, str]) -> bool:
    return row["answer1"] != row["label"]


def _picture(images: Dataset, index: int) -> np.ndarray | None:
    try:
        opened, _ = open_item(images, index)
        image = Image.fromarray(np.ascontiguousarray(opened.decode(None)))
    except OSError:
        return None
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE))
    return np.asarray(image)


def draw_sheet(mistakes: Sequence[Mistake], path: Path, title: str) -> None:
    """Draw a contact sheet, the worst first: picture, label, answer and name of each."""
    from matplotlib.figure import Figure

    rows = -(-len(mistakes) // COLUMNS)
    # one picture of all cells: an axis for each would take seconds
    sheet: np.ndarray = np.full((rows * TALL, COLUMNS * WIDE, 3), 255, np.uint8)
    figure = Figure(figsize=(COLUMNS * WIDE / DPI, (rows * TALL + HEAD) / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, rows * TALL / (rows * TALL + HEAD)))
    for index, each in enumerate(mistakes):
        top, left = index // COLUMNS * TALL, index % COLUMNS * WIDE
        picture = _enlarged(each.picture)
        height, width, _ = picture.shape
        at = top + TEXT + (SIDE - height) // 2, left + (WIDE - width) // 2
        sheet[at[0] : at[0] + height, at[1] : at[1] + width] = picture
        text = f"{_short(each.label)}\nseen as {_short(each.answer)}, {each.percent:.0f} %\n"
        # a name may hold a dollar, which would open a formula
        axes.text(
            left + WIDE / 2,
            top + TEXT - 3,
            text + _end(each.image),
            {"ha": "center", "va": "bottom", "fontsize": 6.5, "parse_math": False},
        )
    axes.imshow(sheet, interpolation="none")
    axes.axis("off")
    figure.text(0.5, 1 - 6 / (rows * TALL + HEAD), printable(title), ha="center", va="top")
    with warnings.catch_warnings():
        # a box stands for a character that no font here has
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(path, format="png")


def _enlarged(picture: np.ndarray) -> np.ndarray:
    """Return a picture whose longest side is nearly SIDE, by whole pixels."""
    times = max(SIDE // max(picture.shape), 1)
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def _short(name: str) -> str:
    """Return the start of a class's name."""
    name = printable(name)
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 3]}..."


def _end(name: str) -> str:
    """Return the end of a file's name."""
    name = printable(name)
    return name if len(name) <= MAX_NAME else f"...{name[3 - MAX_NAME :]}"
