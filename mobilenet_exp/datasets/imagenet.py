"""ImageNet-1k's classes, and its validation set in one flat folder. Nothing is downloaded.

Class ids, names and the ReaL labels (Beyer et al. 2020, arXiv:2006.07159) are timm's
copies.
"""

from functools import cache
from pathlib import Path

import numpy as np

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.text import printable
from mobilenet_exp.datasets.folders import list_images
from mobilenet_exp.datasets.images import ImageFiles
from mobilenet_exp.datasets.listing import Names

NUM_VAL = 50_000


@cache
def class_ids() -> list[str]:
    """Return the 1000 WordNet ids in label order, n01440764 first."""
    # timm takes most of a second to import
    from timm.data import ImageNetInfo

    return ImageNetInfo().label_names()


@cache
def class_names() -> list[str]:
    """Return the 1000 names in label order, e.g. `tench, Tinca tinca`."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return [info.index_to_description(index) for index in range(1000)]


@cache
def _real_labels() -> dict[str, list[int]]:
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, NUM_VAL + 1)]
    from timm.data import RealLabelsImagenet

    return RealLabelsImagenet(names).real_labels


def real_labels(images: ImageFiles) -> list[set[int]]:
    """Return the ReaL labels of each validation file, found by its name; some have none.

    Raises InputError if no file has one of the validation set's names.
    """
    known = _real_labels()
    names = [f"{Path(name).stem}.JPEG" for name in images.names]
    if not any(name in known for name in names):
        problem = "no file has a name of the validation set, as ILSVRC2012_val_00000001.JPEG"
        raise InputError("data.real_labels", True, problem)
    return [set(known.get(name, ())) for name in names]


def flat_images(folder: Path, labels: str) -> ImageFiles:
    """Pair the files of a flat folder with the labels that a file gives them.

    Its lines are `NAME LABEL`, separated by a blank or comma, where LABEL is 0 to 999 or a
    WordNet id and anything after it is ignored; or one WordNet id a line, in the files'
    order. Files without a usable label stay in the set as problems. Raises InputError if
    the file cannot be read, or says nothing about these files.
    """
    paths, others = list_images(folder)
    if not paths:
        raise InputError("data.root", folder, "holds no images")
    given = _read_labels(labels, [path.stem for path in paths])
    numbers, problems = [], {}
    for index, path in enumerate(paths):
        label = given.get(path.stem, f"no label in {Path(labels).name}")
        if isinstance(label, str):
            problems[index], label = label, -1
        numbers.append(label)
    stems = {path.stem for path in paths}
    if len(problems) == len(paths):
        problem = f"has no label for any file of {folder}, such as {paths[0].name}"
        raise InputError("data.labels", labels, problem)
    named = {printable(path.name): why for path, why in others.items()}
    return ImageFiles(
        folder,
        Names.of(path.name for path in paths),
        np.array(numbers, np.int32),
        problems,
        sorted(set(given) - stems),
        named,
    )


def _read_labels(path: str, stems: list[str]) -> dict[str, int | str]:
    """Return for each name, without its ending, a label or what is wrong with it."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("data.labels", path, f"cannot be read: {error}") from error
    rows = [line.replace(",", " ").split() for line in lines]
    # ImageId heads Kaggle's LOC_val_solution.csv, the others people's own
    heads = ("imageid", "image", "file", "filename", "name")
    rows = [row for row in rows if row and row[0][0] != "#" and row[0].lower() not in heads]
    numbers = {row[1] for row in rows if len(row) > 1}
    if len(rows) >= 1000 and "1000" in numbers and "0" not in numbers:
        problem = "its labels run from 1 to 1000; must run from 0 to 999, or be ids"
        raise InputError("data.labels", path, problem)
    if rows and all(len(row) == 1 for row in rows):
        if rows[0][0].isdecimal():
            problem = (
                "numbers without names are in the devkit's order; use NAME LABEL lines, or ids"
            )
            raise InputError("data.labels", path, problem)
        if len(rows) != len(stems):
            problem = f"has {len(rows)} lines without names, for {len(stems)} files"
            raise InputError("data.labels", path, problem)
        rows = [[stem, row[0]] for stem, row in zip(stems, rows, strict=True)]
    ids = {name: index for index, name in enumerate(class_ids())}
    given: dict[str, int | str] = {}
    for name, *rest in rows:
        label = _parse_label(rest[0] if rest else "", ids)
        stem = Path(name).stem
        if given.setdefault(stem, label) != label:
            given[stem] = f"two labels, {given[stem]} and {label}"
    return given


def _parse_label(text: str, ids: dict[str, int]) -> int | str:
    if text.isdecimal() and int(text) < len(ids):
        return int(text)
    return ids.get(text, f"label {text or 'missing'} is not one of the {len(ids)} classes")
