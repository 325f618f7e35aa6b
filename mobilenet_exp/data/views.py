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
from mobilenet_exp.data.sampler import Key
from mobilenet_exp.data.transforms import side_of_epoch, train_transform


@dataclass(frozen=True)
class Unreadable:
    """Stands for an image that cannot be read, or for a batch that holds one."""

    problem: str


def _read(images: Dataset, index: int) -> tuple[Any, int] | Unreadable:
    try:
        return images[index]
    except OSError as error:
        # a decoder's message may have several lines
        reason = str(error).splitlines()[0]
        return Unreadable(f"{reason}; repair or remove the file, then repeat the command")


class View(Dataset):
    """A data set seen through a transform."""

    def __init__(self, images: Dataset, transform: v2.Compose) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | Unreadable:
        found = _read(self.images, index)
        if isinstance(found, Unreadable):
            return found
        image, label = found
        return self.transform(image).as_subclass(Tensor), int(label)


class NotedView(Dataset):
    """A view for evaluation: (image, label, note), and zeros labelled -1 for a bad image."""

    def __init__(self, images: Dataset, transform: v2.Compose, resolution: int) -> None:
        self.images, self.transform, self.resolution = images, transform, resolution

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str] | Unreadable:
        if not isinstance(self.images, ImageFiles):
            found = _read(self.images, index)
            if isinstance(found, Unreadable):
                return found
            image, label = found
            return self.transform(image).as_subclass(Tensor), int(label), ""
        image, label, note = self.images.read(index)
        if image is None:
            return torch.zeros(3, self.resolution, self.resolution), -1, note
        return self.transform(image).as_subclass(Tensor), label, note


class SeededView(Dataset):
    """A training set whose random transforms follow a seed that comes with the index."""

    def __init__(self, images: Dataset, data: DataConfig) -> None:
        self.images, self.data = images, data
        # by side; a bad description is refused here
        side = side_of_epoch(data, 1, 1)
        self._transforms = {side: train_transform(data, side)}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | Unreadable:
        found = _read(self.images, key.image)
        if isinstance(found, Unreadable):
            return found
        image, label = found
        if key.side not in self._transforms:
            self._transforms[key.side] = train_transform(self.data, key.side)
        with seeded(key.seed):
            return self._transforms[key.side](image).as_subclass(Tensor), int(label)


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
