"""A small labelled set of real photographs, cut from those that installed packages ship.

python -m mobilenet_exp photos FOLDER. Its images are ordinary colour JPEG files, so that
the path from file to network can be tried without a download. Parts of the same
photographs are trained on and evaluated on: good for a look at that path, not for a
comparison of networks.
"""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.text import plural

# package, and its photographs below it; the last ones count where they are installed
PHOTOS = {
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "matplotlib": ("mpl-data/sample_data/grace_hopper.jpg",),
    "skimage": ("data/astronaut.png", "data/chelsea.png", "data/coffee.png", "data/rocket.jpg"),
}
# each photograph is divided into GRID x GRID regions; each region is a class
GRID = 2
# images of a class
COUNTS = {"train": 60, "val": 20}
# of the region's sides: how far a window may reach beyond it, and how small it may be
MARGIN, SMALLEST = 0.15, 0.7


def find_photos() -> list[Path]:
    """Return the photographs that are installed here."""
    found = []
    for package, names in PHOTOS.items():
        spec = find_spec(package)
        if spec and spec.origin:
            found += [Path(spec.origin).parent / name for name in names]
    return [path for path in found if path.is_file()]


def write_photos(folder: Path) -> int:
    """Write FOLDER/train/CLASS/IMAGE.jpg and FOLDER/val/..., and return the number of classes.

    The same photographs give the same crops. Raises InputError for a folder that is there
    already; an interrupted call leaves none.
    """
    if folder.exists():
        raise InputError("FOLDER", folder, "is there already; name a new folder")
    half = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    try:
        for number, path in enumerate(find_photos()):
            photo = Image.open(path).convert("RGB")
            for region in range(GRID * GRID):
                random = np.random.default_rng([number, region])
                for split, count in COUNTS.items():
                    folder_of_crops = half / split / f"{path.stem}_{region}"
                    folder_of_crops.mkdir(parents=True)
                    for index in range(count):
                        image = _window(photo, region, random)
                        image.save(folder_of_crops / f"{index:03d}.jpg", quality=90)
        half.replace(folder)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return len(list((folder / "train").iterdir()))


def _window(photo: Image.Image, region: int, random: np.random.Generator) -> Image.Image:
    """Cut a window out of a region, in another light and with a camera's noise."""
    sides = np.array(photo.size) / GRID
    first = np.array([region % GRID, region // GRID]) * sides - MARGIN * sides
    last = np.minimum(first + (1 + 2 * MARGIN) * sides, photo.size)
    first = np.maximum(first, 0)
    size = sides * random.uniform(SMALLEST, 1.0)
    corner = first + random.uniform(0, 1, 2) * (last - first - size)
    window = photo.crop((*corner.astype(int), *(corner + size).astype(int)))
    window = ImageEnhance.Brightness(window).enhance(random.uniform(0.6, 1.4))
    pixels = np.asarray(window) + random.normal(0, random.uniform(2, 20), (*window.size[::-1], 1))
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def main(arguments: list[str]) -> None:
    """Write the set into the folder that is named."""
    if len(arguments) != 1:
        raise InputError("FOLDER", " ".join(arguments) or None, "must be one new folder")
    folder = Path(arguments[0]).expanduser()
    classes = plural(write_photos(folder), "class")
    images = " + ".join(f"{count}" for count in COUNTS.values())
    console.line(f"{folder}: {classes} of {images} images; data=photos data.root={folder}")
