"""Data sets seen through a transform: one image at a time, in whichever process loads it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from mobilenet_exp.config.schema import DataConfig
from mobilenet_exp.data.images import ImageFiles
from mobilenet_exp.data.reading import begin_reading
from mobilenet_exp.data.sampler import Key
from mobilenet_exp.data.transforms import side_of_epoch, train_transform

# images tried in the place of one that cannot be read
MAX_TRIES = 100


@dataclass(frozen=True)
class Unreadable:
    """Stands for an image that cannot be read, or for a batch that holds one."""

    problem: str


@dataclass(frozen=True)
class Odd:
    """What was odd about the images of a batch.

    `left_out` maps names of images that could not be read to the reason; `num_unturned`
    counts those whose EXIF orientation was ignored.
    """

    left_out: dict[str, str]
    num_unturned: int = 0


def read_image(images: Dataset, index: int) -> tuple[Any, int, str, bool]:
    """Return image, label, note, and whether an EXIF orientation was ignored.

    Image, label and note are None, -1 and the reason where the image cannot be read.
    """
    begin_reading(index)
    if isinstance(images, ImageFiles):
        picture, label, problem = images.read(index)
        if picture is None:
            return None, -1, problem, False
        return picture.image, label, picture.note, picture.is_unturned
    try:
        image, label = images[index]
    except OSError as error:
        return None, -1, (str(error).splitlines() or [type(error).__name__])[0], False
    return image, int(label), "", False


def name_of(images: Dataset, index: int) -> str:
    """Return an image's name below its root, or its number where it is no file."""
    return images.name(index) if isinstance(images, ImageFiles) else f"image {index}"


class NotedView(Dataset):
    """A view for evaluation: (image, label, note), and zeros labelled -1 for a bad image."""

    def __init__(self, images: Dataset, transform: v2.Compose, resolution: int) -> None:
        self.images, self.transform, self.resolution = images, transform, resolution

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        image, label, note, _ = read_image(self.images, index)
        if image is None:
            return torch.zeros(3, self.resolution, self.resolution), -1, note
        return self.transform(image).as_subclass(Tensor), label, note


class SeededView(Dataset):
    """A training set whose random transforms follow a seed that comes with the index.

    Samples are (image, label, odd). Where `data.on_bad_image` is skip, the next image that
    can be read takes the place of one that cannot: the same in every process, and no batch
    gets smaller.
    """

    def __init__(self, images: Dataset, data: DataConfig) -> None:
        self.images, self.data = images, data
        # by side; a bad description is refused here
        side = side_of_epoch(data, 1, 1)
        self._transforms = {side: train_transform(data, side)}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> tuple[Tensor, int, Odd] | Unreadable:
        left_out: dict[str, str] = {}
        tries = MAX_TRIES if self.data.on_bad_image == "skip" else 1
        for index in range(key.image, key.image + min(tries, len(self))):
            image, label, note, is_unturned = read_image(self.images, index % len(self))
            if image is not None:
                break
            left_out[name_of(self.images, index % len(self))] = note
        else:
            return Unreadable(self._problem(left_out))
        if key.side not in self._transforms:
            self._transforms[key.side] = train_transform(self.data, key.side)
        with seeded(key.seed):
            transformed = self._transforms[key.side](image).as_subclass(Tensor)
        return transformed, label, Odd(left_out, int(is_unturned))

    def _problem(self, left_out: dict[str, str]) -> str:
        if len(left_out) > 1:
            return (
                f"{len(left_out)} images in a row cannot be read; the first: {first_of(left_out)}"
            )
        if isinstance(self.images, ImageFiles):
            return f"{self.images.root}/{first_of(left_out)}; {BAD_IMAGE_ADVICE}"
        (reason,) = left_out.values()
        return f"{reason}; {BAD_IMAGE_ADVICE}"


BAD_IMAGE_ADVICE = (
    "to resume, repair the file, or repeat the command with data.on_bad_image=skip; "
    "without the file it is another set of images, which needs another run.root"
)


def first_of(left_out: dict[str, str]) -> str:
    """Return the first of several names with its reason."""
    return next(f"{name} {reason}" for name, reason in left_out.items())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed what transforms draw from, on the CPU, and restore it afterwards."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
