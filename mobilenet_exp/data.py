"""Transforms of images, and loaders whose order follows from the seed.

Knows no model and no optimizer. Order and augmentation of an epoch depend on (seed,
epoch) alone, whatever the number of workers, so a resumed run needs no generator state.
"""

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from torchvision.transforms import v2

from mobilenet_exp.errors import InputError
from mobilenet_exp.image_sets import ImageSet, build_image_set
from mobilenet_exp.images import ImageFiles
from mobilenet_exp.schema import DataConfig, Preprocessing


@dataclass(frozen=True)
class Loaders:
    """Batches of images (N, 3, H, W) float32 normalised and labels (N,) int64.

    Call `train_sampler.set_epoch` before an epoch. A last training batch that is not
    full is dropped; evaluation sees every image once.
    """

    train: DataLoader
    train_sampler: "SeededSampler"
    val: DataLoader
    classes: list[str]

    def identity(self) -> dict[str, object]:
        """Return what tells one set of images from another: its classes and counts."""
        names = "\n".join(self.classes).encode()
        return {
            "classes_sha256": hashlib.sha256(names).hexdigest(),
            "num_train": len(self.train.dataset),
            "num_val": len(self.val.dataset),
        }


def build_loaders(
    data: DataConfig, *, seed: int, workers: int | None = None, pin_memory: bool = False
) -> Loaders:
    """Build the training and evaluation loaders of a dataset by `data.name`.

    `workers=None`: 0 for data in memory, else one per core. Raises InputError for an
    unknown name or option and for missing files.
    """
    train, val = build_image_set(data, "train"), build_image_set(data, "val")
    if train.classes != val.classes:
        strangers = sorted(set(train.classes) ^ set(val.classes))
        allowed = "train/ and val/ must hold the same classes; only in one"
        raise InputError("data.root", data.root, f"{allowed}: {', '.join(strangers[:5])}")
    if data.batch_size < 2 or len(train.images) < 2:
        allowed = "must be at least 2, of at least 2 training images: BatchNorm compares images"
        raise InputError("data.batch_size", data.batch_size, allowed)
    sampler = SeededSampler(len(train.images), seed)
    return Loaders(
        train=DataLoader(
            SeededView(train.images, train_transform(data)),
            sampler=sampler,
            drop_last=len(train.images) >= data.batch_size,
            **_loading(data, train, workers, pin_memory),
        ),
        train_sampler=sampler,
        val=_val_loader(data, val, workers, pin_memory),
        classes=val.classes,
    )


def build_eval_loader(
    data: DataConfig,
    *,
    workers: int | None = None,
    pin_memory: bool = False,
    first: int = 0,
    step: int = 1,
) -> tuple[DataLoader, ImageSet]:
    """Build the loader of an evaluation, and the whole set; needs no training images.

    Its batches are images, labels and notes. An image that cannot be scored comes as
    zeros labelled -1, with the reason as its note. Of the set it takes the images
    number `first`, `first + step`, ...
    """
    val = build_image_set(data, "val")
    view = NotedView(val.images, eval_transform(data), data.resolution)
    share = Subset(view, range(first, len(view), step))
    return DataLoader(share, **_loading(data, val, workers, pin_memory)), val


def _val_loader(
    data: DataConfig, val: ImageSet, workers: int | None, pin_memory: bool
) -> DataLoader:
    view = View(val.images, eval_transform(data))
    return DataLoader(view, **_loading(data, val, workers, pin_memory))


def _loading(
    data: DataConfig, images: ImageSet, workers: int | None, pin_memory: bool
) -> dict[str, object]:
    if workers is None:
        workers = 0 if images.in_memory else _num_cores()
    return {
        "batch_size": data.batch_size,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": pin_memory,
        # of its own: a loader would draw from the global one, which dropout follows
        "generator": torch.Generator(),
    }


def _num_cores() -> int:
    # those this process may use, where the system tells: a cluster's job has a share
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def train_transform(data: DataConfig) -> v2.Compose:
    """Return the augmentation named by `data.augment`, then normalisation."""
    side = data.resolution
    augmentations = {
        # torchvision's defaults: 8-100 % of the area, aspect 3:4 to 4:3
        "random_resized_crop": [v2.RandomResizedCrop(side), v2.RandomHorizontalFlip()],
        "pad_crop_flip": [
            v2.Resize((side, side)),
            v2.RandomCrop(side, padding=side // 8),
            v2.RandomHorizontalFlip(),
        ],
        # no flip: a mirrored digit is another sign
        "affine": [
            v2.Resize((side, side)),
            v2.RandomAffine(
                10,
                translate=(0.1, 0.1),
                scale=(0.9, 1.1),
                interpolation=v2.InterpolationMode.BILINEAR,
            ),
        ],
        "none": [v2.Resize((side, side))],
    }
    if data.augment not in augmentations:
        allowed = f"not known; allowed: {', '.join(augmentations)}"
        raise InputError("data.augment", data.augment, allowed)
    return v2.Compose(augmentations[data.augment] + _normalize(data))


def eval_transform(data: DataConfig | Preprocessing) -> v2.Compose:
    """Resize the shorter side to resolution / crop_pct, crop the centre, normalise.

    The resized side is cut to whole pixels, as timm does.
    """
    side = data.resolution
    # 224 / (224 / 232) must stay 232
    resized = math.floor(side / data.crop_pct + 1e-6)
    interpolation = v2.InterpolationMode(data.interpolation)
    steps = [v2.Resize(resized, interpolation), v2.CenterCrop(side)]
    return v2.Compose(steps + _normalize(data))


def _normalize(data: DataConfig | Preprocessing) -> list:
    return [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(data.mean), list(data.std)),
    ]


class View(Dataset):
    """A dataset seen through a transform."""

    def __init__(self, images: Dataset, transform: v2.Compose) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return self.transform(image).as_subclass(Tensor), int(label)


class NotedView(View):
    """A view for evaluation: (image, label, note), and zeros labelled -1 for a bad image."""

    def __init__(self, images: Dataset, transform: v2.Compose, resolution: int) -> None:
        super().__init__(images, transform)
        self.resolution = resolution

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        if not isinstance(self.images, ImageFiles):
            return *super().__getitem__(index), ""
        image, label, note = self.images.read(index)
        if image is None:
            return torch.zeros(3, self.resolution, self.resolution), -1, note
        return self.transform(image).as_subclass(Tensor), label, note


class SeededView(View):
    """A view whose random transforms follow a seed that comes with the index."""

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = key
        # only the CPU generator, which the transforms draw from
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            return super().__getitem__(index)
        finally:
            torch.set_rng_state(state)


class SeededSampler(Sampler):
    """Shuffled (index, seed) pairs that follow from (seed, epoch) alone."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # a prime stride keeps the (seed, epoch) pairs apart
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator).tolist()
        seeds = torch.randint(2**62, (self.size,), generator=generator).tolist()
        return iter(zip(order, seeds, strict=True))
