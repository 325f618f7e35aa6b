"""Loaders of images, whose order and augmentation follow from the seed.

Knows no model and no optimizer. Order and augmentation of an epoch depend on (seed,
epoch) alone, whatever the number of workers, so a resumed run needs no generator state.
"""

import hashlib
from dataclasses import dataclass
from functools import partial

from torch.utils.data import DataLoader, Dataset, Subset

from mobilenet_exp.config.schema import DataConfig, EvalImages
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data.datasets import ImageSet, build_image_set
from mobilenet_exp.data.images import ImageFiles
from mobilenet_exp.data.mixing import mixes
from mobilenet_exp.data.sampler import BatchSampler
from mobilenet_exp.data.transforms import eval_transform, side_of_epoch
from mobilenet_exp.data.views import NotedView, SeededView
from mobilenet_exp.data.workers import Loader, num_eval_workers, num_workers


@dataclass(frozen=True)
class Loaders:
    """Batches of images (N, 3, H, W) float32, normalised, and labels (N,) int64.

    A training batch ends in an `Odd`, an evaluation's in notes. Call `sampler.set_position`
    before an epoch. Images that do not fill a last training batch are left out; evaluation
    sees every image once, this process its share: those of number `rank`, `rank` +
    `processes`, ... `others` are files that are no images, with the reason.
    """

    train: DataLoader
    sampler: BatchSampler
    val: DataLoader
    val_images: Dataset
    classes: list[str]
    others: dict[str, str]

    @property
    def num_val(self) -> int:
        return len(self.val_images)

    def workers(self) -> str:
        """Say how many processes load images, or nothing where none does."""
        counts = self.train.num_workers, self.val.num_workers
        return f"{counts[0]} + {counts[1]} loading processes" if counts[0] else ""

    def identity(self) -> dict[str, object]:
        """Return what tells one set of images from another: its classes and counts."""
        names = "\n".join(self.classes).encode()
        return {
            "classes_sha256": hashlib.sha256(names).hexdigest(),
            "num_train": len(self.train.dataset),
            "num_val": self.num_val,
        }

    def fingerprint(self) -> str:
        """Return a hash of all images' names and labels, which peers that train together share."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for images in (self.train.dataset.images, self.val_images):
            if isinstance(images, ImageFiles):
                lines = (f"{images.name(i)} {images.samples[i][1]}" for i in range(len(images)))
                digest.update("\n".join(lines).encode())
        return digest.hexdigest()


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
    sharing: int = 1,
) -> Loaders:
    """Build the training and evaluation loaders of a data set by `data.name`.

    Of `processes` that train together this is number `rank`, whose cores are those of
    `sharing` processes; `epochs` is how long a progressive side takes to rise. `workers` is
    explained in `num_workers`. Raises InputError for an unknown name or option and for
    missing files.
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
    view = NotedView(val.images, eval_transform(data), data.resolution)
    workers = num_workers(train, workers, sharing)
    return Loaders(
        train=Loader(
            SeededView(train.images, data),
            images=train.images,
            workers=workers,
            pin_memory=pin_memory,
            batch_sampler=sampler,
        ),
        sampler=sampler,
        val=Loader(
            Subset(view, range(rank, len(view), processes)),
            images=val.images,
            workers=num_eval_workers(workers),
            pin_memory=pin_memory,
            batch_size=data.batch_size,
        ),
        val_images=val.images,
        classes=val.classes,
        others=_others(train.images, val.images),
    )


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
    sharing: int = 1,
) -> tuple[DataLoader, ImageSet]:
    """Build the loader of an evaluation, and the whole set; needs no training images.

    Its batches are images, labels and notes. An image that cannot be scored appears as
    zeros labelled -1, with the reason as its note. The loader takes the images number
    `first`, `first + step`, ... of the set.
    """
    val = build_image_set(data, "val")
    view = NotedView(val.images, eval_transform(data), data.resolution)
    share = Subset(view, range(first, len(view), step))
    loader = Loader(
        share,
        images=val.images,
        workers=num_workers(val, workers, sharing),
        pin_memory=pin_memory,
        batch_size=data.batch_size,
    )
    return loader, val
