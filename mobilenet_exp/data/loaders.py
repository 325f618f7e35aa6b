"""Loaders of images, whose order and augmentation follow from the seed.

Knows no model and no optimizer. Order and augmentation of an epoch depend on (seed,
epoch) alone, whatever the number of workers, so a resumed run needs no generator state.
"""

import hashlib
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate
from torchvision.transforms import v2

from mobilenet_exp.config.schema import DataConfig, EvalImages
from mobilenet_exp.core.errors import InputError, RunError
from mobilenet_exp.data.datasets import ImageSet, build_image_set
from mobilenet_exp.data.images import ImageFiles
from mobilenet_exp.data.mixing import mixes
from mobilenet_exp.data.sampler import BatchSampler, Key
from mobilenet_exp.data.transforms import eval_transform, side_of_epoch, train_transform
from mobilenet_exp.machine.preemption import ASKING


@dataclass(frozen=True)
class Loaders:
    """Batches of images (N, 3, H, W) float32, normalised, and labels (N,) int64.

    Call `sampler.set_position` before an epoch. Images that do not fill a last training
    batch are left out; evaluation sees every image once, this process its share.
    """

    train: DataLoader
    sampler: BatchSampler
    val: DataLoader
    classes: list[str]
    num_val: int

    def identity(self) -> dict[str, object]:
        """Return what tells one set of images from another: its classes and counts."""
        names = "\n".join(self.classes).encode()
        return {
            "classes_sha256": hashlib.sha256(names).hexdigest(),
            "num_train": len(self.train.dataset),
            "num_val": self.num_val,
        }


def build_loaders(
    data: DataConfig,
    *,
    seed: int,
    epochs: int = 1,
    accumulate: int = 1,
    workers: int | None = None,
    pin_memory: bool = False,
    rank: int = 0,
    processes: int = 1,
) -> Loaders:
    """Build the training and evaluation loaders of a data set by `data.name`.

    Of `processes` that train together this is number `rank`; `epochs` is how long a
    progressive side takes to rise. `workers=None`: 0 for data in memory, else one per
    core. Raises InputError for an unknown name or option and for missing files.
    """
    train, val = build_image_set(data, "train"), build_image_set(data, "val")
    _check_classes(data, train, val)
    sampler = BatchSampler(
        len(train.images),
        data.batch_size,
        seed=seed,
        side_at=partial(side_of_epoch, data, epochs=epochs),
        repeats=data.repeats,
        rank=rank,
        processes=processes,
        accumulate=accumulate,
        pairs=mixes(data),
    )
    _check_sides(data, sampler)
    share = Subset(View(val.images, eval_transform(data)), range(rank, len(val.images), processes))
    return Loaders(
        train=Loader(
            SeededView(train.images, data),
            batch_sampler=sampler,
            **_loading(train, workers, pin_memory),
        ),
        sampler=sampler,
        val=Loader(share, batch_size=data.batch_size, **_loading(val, workers, pin_memory)),
        classes=val.classes,
        num_val=len(val.images),
    )


def _check_classes(data: DataConfig, train: ImageSet, val: ImageSet) -> None:
    if train.classes != val.classes:
        strangers = sorted(set(train.classes) ^ set(val.classes))
        problem = "train/ and val/ must hold the same classes; only one of them has"
        raise InputError("data.root", data.root, f"{problem} {', '.join(strangers[:5])}")


def _check_sides(data: DataConfig, sampler: BatchSampler) -> None:
    last = data.train_resolution or data.resolution
    if data.progressive_from and data.progressive_from > last:
        problem = f"must not exceed training's side, {last}"
        raise InputError("data.progressive_from", data.progressive_from, problem)
    if sampler.part_size < 2:
        problem = "each accumulation part needs at least 2 images for BatchNorm"
        raise InputError("data.batch_size", data.batch_size, problem)


def build_eval_loader(
    data: EvalImages,
    *,
    workers: int | None = None,
    pin_memory: bool = False,
    first: int = 0,
    step: int = 1,
) -> tuple[DataLoader, ImageSet]:
    """Build the loader of an evaluation, and the whole set; needs no training images.

    Its batches are images, labels and notes. An image that cannot be scored appears as
    zeros labelled -1, with the reason as its note. The loader takes the images number
    `first`, `first + step`, ... of the set.
    """
    val = build_image_set(data, "val")
    view = NotedView(val.images, eval_transform(data), data.resolution)
    share = Subset(view, range(first, len(view), step))
    loader = Loader(share, batch_size=data.batch_size, **_loading(val, workers, pin_memory))
    return loader, val


def _loading(images: ImageSet, workers: int | None, pin_memory: bool) -> dict[str, Any]:
    if workers is None:
        workers = 0 if images.in_memory else _num_cores()
    if workers:
        _end_workers_at_exit()
    return {
        "num_workers": workers,
        "worker_init_fn": _ignore_signals if workers else None,
        "persistent_workers": workers > 0,
        "pin_memory": pin_memory,
        # its own: a loader would draw from the global generator, which dropout follows
        "generator": torch.Generator(),
    }


@cache
def _end_workers_at_exit() -> None:
    """Kill loading processes when this process ends, however it ends in Python.

    They ignore SIGTERM, by which multiprocessing would end them before it waits for them.
    """
    Finalize(None, _kill_workers, exitpriority=100)


def _kill_workers() -> None:
    if threading.current_thread() is threading.main_thread():
        # torch's handler raises for a loading process that was killed
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _ignore_signals(_: int) -> None:
    """Let the training process alone decide what Ctrl-C and a scheduler's signals mean."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)


def _num_cores() -> int:
    # those this process may use, where the system tells: a cluster's job has a share
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# what torch says when a loading process died or could not hand over its batch
WORKER_DIED = (
    "unable to write to file",
    "unable to allocate shared memory",
    "No space left on device",
    "is killed by signal",
    "exited unexpectedly",
)
WORKER_ADVICE = (
    "a loading process died or could not hand over its batch; memory or /dev/shm may be full: "
    "make it larger, or load fewer images at once with run.workers=0 or a lower run.workers"
)


class Loader(DataLoader):
    """A DataLoader that raises a RunError in plain words for an image that cannot be read.

    A loading process hands the reason over as a value: an exception would arrive as the
    text of its traceback.
    """

    def __init__(self, dataset: Dataset, **options: Any) -> None:
        super().__init__(dataset, collate_fn=_collate, **options)

    def __iter__(self) -> Iterator:
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if any(sign in str(error) for sign in WORKER_DIED):
                    raise RunError(WORKER_ADVICE) from error
                raise
            if isinstance(batch, Unreadable):
                raise RunError(batch.problem)
            yield batch


@dataclass(frozen=True)
class Unreadable:
    """Stands for an image that cannot be read, or for a batch that holds one."""

    problem: str


def _collate(samples: list) -> Any:
    for sample in samples:
        if isinstance(sample, Unreadable):
            return sample
    return default_collate(samples)


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
