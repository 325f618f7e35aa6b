"""Loaders of images, whose order and augmentation follow from the seed.

Knows no model and no optimizer. Order and augmentation of an epoch depend on (seed,
epoch) alone, whatever the number of workers, so a resumed run needs no generator state.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.data import Dataset

from mobilenet_exp.config.schema import Config, DataConfig, EvalImages, EvalRunConfig
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.registry import import_modules
from mobilenet_exp.data.feeding import Feed, Reader, ThreadReader
from mobilenet_exp.data.finishing import Finisher
from mobilenet_exp.data.mixing import mixes
from mobilenet_exp.data.sampler import BatchSampler
from mobilenet_exp.data.threads import EVALUATION, TRAINING, Threads
from mobilenet_exp.data.transforms import EvalTransform, side_of_epoch
from mobilenet_exp.data.views import EvalView, TrainView, View
from mobilenet_exp.data.workers import (
    USEFUL_THREADS,
    ProcessReader,
    num_eval_workers,
    num_workers,
)
from mobilenet_exp.datasets.builders import ImageSet, build_image_set
from mobilenet_exp.datasets.codec import load_decoder
from mobilenet_exp.datasets.images import ImageFiles

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Reading:
    """Who reads images and where they go; `workers` is explained in `num_workers`.

    `loader` is auto, threads or processes. `image_timeout` is in seconds; None: no limit.
    """

    device: torch.device = CPU
    workers: int | None = None
    loader: str = "auto"
    image_timeout: float | None = None
    # processes that have the same cores
    sharing: int = 1
    # whether a batch's memory is used again once the next update's batches are asked for
    reuses: bool = False

    @classmethod
    def of(cls, run: EvalRunConfig, device: torch.device, sharing: int) -> "Reading":
        """Return what a program's configuration says, for one that takes batches in turn."""
        return cls(device, run.workers, run.loader, run.image_timeout, sharing, reuses=True)


@dataclass(frozen=True)
class Loaders:
    """Batches of images (N, 3, H, W) float32, normalised, and labels (N,) int64.

    A training batch ends in an `Odd`, an evaluation's in notes. Call `sampler.set_position`
    before an epoch. Images that do not fill a last training batch are left out; evaluation
    sees every image once, this process its share: those of number `rank`, `rank` +
    `processes`, ... `others` are files that are no images, with the reason.
    """

    train: Feed
    sampler: BatchSampler
    val: Feed
    classes: list[str]
    others: dict[str, str]
    # as `16 loading threads`; empty where the process itself reads
    readers: str

    @property
    def num_train(self) -> int:
        return len(self.train.view.images)

    @property
    def val_images(self) -> Dataset:
        return self.val.view.images

    @property
    def num_val(self) -> int:
        return len(self.val_images)

    def identity(self) -> dict[str, object]:
        """Return what tells one set of images from another: classes, counts, names of files."""
        names = "\n".join(self.classes).encode()
        found: dict[str, object] = {
            "classes_sha256": hashlib.sha256(names).hexdigest(),
            "num_train": self.num_train,
            "num_val": self.num_val,
        }
        if isinstance(self.val_images, ImageFiles):
            found["names_sha256"] = self.fingerprint()
        return found

    def fingerprint(self) -> str:
        """Return a hash of all images' names and labels, which peers that train together share."""
        return _fingerprint(self.classes, self.train.view.images, self.val_images)


def names_of(config: Config) -> str | None:
    """Return the `names_sha256` of a run's images, as `identity` has it, without loaders."""
    import_modules(config.run.imports)
    data = config.data
    train, val = build_image_set(data, "train"), build_image_set(data, "val")
    if not isinstance(val.images, ImageFiles):
        return None
    return _fingerprint(_check_classes(data, train, val), train.images, val.images)


def _fingerprint(classes: list[str], *splits: Dataset) -> str:
    digest = hashlib.sha256("\n".join(classes).encode())
    for images in splits:
        if isinstance(images, ImageFiles):
            images.add_to(digest)
    return digest.hexdigest()


class _Share:
    """The images of an evaluation that one process scores, in batches."""

    position = None

    def __init__(self, indices: Sequence[int], batch_size: int) -> None:
        self.indices, self.batch_size = indices, batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(0, len(self.indices), self.batch_size):
            yield list(self.indices[first : first + self.batch_size])


def build_loaders(
    data: DataConfig,
    *,
    seed: int,
    epochs: int = 1,
    accumulate: int = 1,
    rank: int = 0,
    processes: int = 1,
    reading: Reading | None = None,
) -> Loaders:
    """Build the training and evaluation feeds of a data set by `data.name`.

    Of `processes` that train together this is number `rank`; `epochs` is how long a
    progressive side takes to rise. Raises InputError for an unknown name or option and for
    missing files.
    """
    reading = reading or Reading()
    load_decoder()
    train, val = build_image_set(data, "train"), build_image_set(data, "val")
    classes = _check_classes(data, train, val)
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
    view = TrainView(train.images, data)
    val_view = EvalView(val.images, EvalTransform(data, exact=data.resize == "exact"))
    threads = Threads(_num_workers(train, reading), reading.image_timeout)
    finisher = Finisher(data.mean, data.std, reading.device)
    # an update's batch is shared by all processes; so is an evaluation's
    eval_batch = max(1, data.batch_size // processes)
    share = _Share(range(rank, len(val.images), processes), eval_batch)
    fits = train.for_threads and not view.draws_globally
    if reading.loader == "threads" and threads.count and not fits:
        what = "data.auto_augment" if view.draws_globally else f"data={data.name}"
        problem = f"{what} draws from global generators, which needs processes"
        raise InputError("run.loader", "threads", problem)
    keep = accumulate if reading.reuses else 0
    reader = _reader(view, threads, reading, finisher, TRAINING, fits=fits, keep=keep)
    val_reader = _reader(
        val_view,
        threads,
        reading,
        finisher,
        EVALUATION,
        fits=val.for_threads,
        keep=int(reading.reuses),
    )
    return Loaders(
        train=Feed(view, sampler, reader, finisher),
        sampler=sampler,
        val=Feed(val_view, share, val_reader, finisher),
        classes=classes,
        others=_others(train.images, val.images),
        readers=" + ".join(dict.fromkeys(filter(None, (reader.words, val_reader.words)))),
    )


def _num_workers(images: ImageSet, reading: Reading) -> int:
    return num_workers(images, reading.workers, reading.sharing, reading.device)


def _reader(
    view: View,
    threads: Threads,
    reading: Reading,
    finisher: Finisher,
    priority: int,
    *,
    fits: bool,
    keep: int,
) -> Reader:
    """Return what reads a view: threads where they fit; processes of files where they are many.

    A data set that is made for threads may not be made for processes.
    """
    is_small = threads.count <= USEFUL_THREADS or not isinstance(view.images, ImageFiles)
    uses_threads = reading.loader == "threads" or (reading.loader == "auto" and is_small)
    if not threads.count or (fits and uses_threads):
        return ThreadReader(view, threads, priority, finisher, keep=keep)
    workers = threads.count if priority == TRAINING else num_eval_workers(threads.count)
    pins = reading.device.type == "cuda"
    return ProcessReader(view, workers, reading.image_timeout, pin_memory=pins)


def _others(train: Dataset, val: Dataset) -> dict[str, str]:
    """Return the files of both splits that are no images; one tree that was split has them once."""
    if not isinstance(train, ImageFiles) or not isinstance(val, ImageFiles):
        return {}
    if train.root == val.root:
        return train.others
    return {
        f"{images.root.name}/{name}": why
        for images in (train, val)
        for name, why in images.others.items()
    }


def _check_classes(data: DataConfig, train: ImageSet, val: ImageSet) -> list[str]:
    """Return the class names of both splits. Raises InputError where they are not the same."""
    longer = max(train.classes, val.classes, key=len)
    shorter = min(train.classes, val.classes, key=len)
    # labels of shards from elsewhere are numbers, of which a split may lack the last
    if data.name == "packed" and longer[: len(shorter)] == shorter:
        return longer
    if train.classes != val.classes:
        strangers = sorted(set(train.classes) ^ set(val.classes))
        problem = "train/ and val/ must hold the same classes; only one of them has"
        raise InputError("data.root", data.root, f"{problem} {', '.join(strangers[:5])}")
    return longer


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
    first: int = 0,
    step: int = 1,
    most: int | None = None,
    split: str = "val",
    reading: Reading | None = None,
) -> tuple[Feed, ImageSet]:
    """Build the feed of an evaluation, and the whole set of `split`; needs no other images.

    Its batches are images, labels and notes. An image that cannot be scored is labelled -1,
    with the reason as its note. The feed takes the images number `first`, `first + step`,
    ... of the set, or `most` of these from all over it.
    """
    reading = reading or Reading()
    load_decoder()
    val = build_image_set(data, split)
    numbers: Sequence[int] = range(first, len(val.images), step)
    if most is not None and most < len(numbers):
        numbers = [numbers[index * len(numbers) // most] for index in range(most)]
    view = EvalView(val.images, EvalTransform(data, exact=data.resize == "exact"))
    threads = Threads(_num_workers(val, reading), reading.image_timeout)
    finisher, keep = Finisher(data.mean, data.std, reading.device), int(reading.reuses)
    # nothing else is read meanwhile: as many processes as training has
    reader = _reader(view, threads, reading, finisher, TRAINING, fits=val.for_threads, keep=keep)
    share = _Share(numbers, data.batch_size)
    return Feed(view, share, reader, finisher), val
