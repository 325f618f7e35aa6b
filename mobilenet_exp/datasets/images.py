"""Images and their labels, read one at a time; and the registry of data sets."""

import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from mobilenet_exp.core.registry import Registry
from mobilenet_exp.core.text import printable
from mobilenet_exp.datasets.codec import Box
from mobilenet_exp.datasets.decode import Opened, open_image
from mobilenet_exp.datasets.listing import Names

# A builder gets the configuration of the images and `train` or `val`; it returns an `ImageSet`.
DATASETS: Registry = Registry("data.name")


@dataclass(frozen=True)
class ImageSet:
    """One split: pairs (image, label), and class names by label.

    Images are Pillow's, or tensors (C, H, W): uint8, or floats in [0, 1].
    """

    images: Dataset
    classes: list[str]
    in_memory: bool = False


def open_file(path: str | Path, *, upright: bool = True) -> Opened:
    """Read an image file and its header. Raises OSError naming it if that cannot be done."""
    try:
        with open(path, "rb") as file:
            return open_image(file.read(), os.path.splitext(path)[1], upright=upright)
    except MemoryError:
        raise
    except OSError as error:
        raise OSError(f"{path} cannot be decoded: {error.strerror or error}") from error


# O_NONBLOCK: opening a pipe must not block a thread for ever; O_BINARY exists on Windows
_OPENED = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def read_file(path: str) -> bytes:
    """Return a regular file's bytes, in few system calls, as each one releases the GIL."""
    file = os.open(path, _OPENED)
    try:
        facts = os.fstat(file)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError("not a regular file")
        data = os.read(file, facts.st_size)
        while len(data) < facts.st_size and (more := os.read(file, facts.st_size - len(data))):
            data += more
        return data
    finally:
        os.close(file)


@dataclass
class ImageFiles(Dataset):
    """Files below `root` with their labels; -1 where `problems` says what is wrong.

    `missing` names files that have a label but are not in the folder, `others` the files
    that are no images, with the reason. `upright` is `open_image`'s.
    """

    root: Path
    names: Names
    labels: np.ndarray
    problems: dict[int, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)
    upright: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> tuple[bytes, str]:
        """Return a file's bytes and its ending. Raises OSError with what is wrong with it."""
        path = self.path(index)
        return read_file(path), os.path.splitext(path)[1]

    def open(self, index: int) -> tuple[Opened, int]:
        """Return an image of which nothing is decoded yet, and its label.

        Raises OSError with what is wrong with the file.
        """
        if index in self.problems:
            raise OSError(self.problems[index])
        try:
            data, ending = self.read(index)
            image = open_image(data, ending, upright=self.upright)
        except OSError as error:
            raise OSError(f"cannot be decoded: {error.strerror or error}") from error
        return image, int(self.labels[index])

    def path(self, index: int) -> str:
        """Return a file's path."""
        return f"{self.root}{os.sep}{self.names[index]}"

    def name(self, index: int) -> str:
        """Return a file's path below the root, in characters that can be shown."""
        return printable(self.names[index])

    def add_to(self, digest: "hashlib._Hash") -> None:
        """Let a hash depend on all names and labels."""
        for each in (self.names.text, self.names.ends, self.labels):
            digest.update(np.ascontiguousarray(each).tobytes())

    def chosen(self, indices: Iterable[int]) -> "ImageFiles":
        """Return some of these files."""
        indices = list(indices)
        return replace(self, names=self.names.chosen(indices), labels=self.labels[indices])


def open_item(images: Dataset, index: int) -> tuple[Opened, int]:
    """Return an image of any set and its label.

    Raises OSError with the reason where it cannot be read.
    """
    if isinstance(images, ImageFiles):
        return images.open(index)
    image, label = images[index]
    return opened(image), int(label)


def opened(image: Image.Image | torch.Tensor) -> Opened:
    """Return the image of a data set, Pillow's or a tensor (C, H, W), as if from a file.

    A tensor of floats in [0, 1] becomes uint8, as all image files are.
    """
    if isinstance(image, Image.Image):
        pixels = np.array(image.convert("RGB"))
    else:
        image = F.to_dtype(torch.as_tensor(image), torch.uint8, scale=True)
        pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()

    def decode(box: Box | None) -> np.ndarray:
        if box is None:
            return pixels
        return pixels[box.top : box.top + box.height, box.left : box.left + box.width]

    height, width, _ = pixels.shape
    return Opened(height, width, decode)


def name_of(images: Dataset, index: int) -> str:
    """Return an image's name below its root, or its number where it is no file."""
    return images.name(index) if isinstance(images, ImageFiles) else f"image {index}"
