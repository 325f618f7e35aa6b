"""Datasets by name, their transforms, and loaders whose order follows from the seed.

Knows no model and no optimizer. Order and augmentation of an epoch depend on (seed,
epoch) alone, whatever the number of workers, so a resumed run needs no generator state.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset
from torchvision import datasets
from torchvision.transforms import v2

from mobilenet_exp.config import DataConfig
from mobilenet_exp.errors import InputError
from mobilenet_exp.registry import Registry

DATASETS: Registry = Registry("data.name")


@dataclass(frozen=True)
class ImageSets:
    """Pairs (image, label) to learn from and to evaluate on; class names by label."""

    train: Dataset
    val: Dataset
    classes: list[str]
    in_memory: bool = False


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


def build_loaders(
    data: DataConfig, *, seed: int, workers: int | None = None, pin_memory: bool = False
) -> Loaders:
    """Build the loaders of a dataset by `data.name`.

    `workers=None`: 0 for data in memory, else one per core. Raises InputError for an
    unknown name or option and for missing files.
    """
    DATASETS.check_options(data.name, data.args, "data.args")
    sets = DATASETS.get(data.name)(data, **data.args)
    if workers is None:
        workers = 0 if sets.in_memory else os.cpu_count() or 1
    sampler = SeededSampler(len(sets.train), seed)
    common = {
        "batch_size": data.batch_size,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": pin_memory,
        # of its own: a loader would draw from the global one, which dropout follows
        "generator": torch.Generator().manual_seed(seed),
    }
    return Loaders(
        train=DataLoader(
            SeededView(sets.train, train_transform(data)),
            sampler=sampler,
            drop_last=len(sets.train) >= data.batch_size,
            **common,
        ),
        train_sampler=sampler,
        val=DataLoader(View(sets.val, eval_transform(data)), **common),
        classes=sets.classes,
    )


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


def eval_transform(data: DataConfig) -> v2.Compose:
    """Resize the shorter side to resolution / crop_pct, crop the centre, normalise."""
    side = data.resolution
    steps = [v2.Resize(round(side / data.crop_pct)), v2.CenterCrop(side)]
    return v2.Compose(steps + _normalize(data))


def _normalize(data: DataConfig) -> list:
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


@DATASETS.register("digits")
def digits(data: DataConfig) -> ImageSets:
    """scikit-learn's handwritten digits; a stratified fifth, always the same, is held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    # 8x8 values 0..16, repeated over three colour channels
    images = torch.from_numpy(pixels).float().mul(255 / 16).round().byte()
    images = images.view(-1, 1, 8, 8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(labels).long()
    train, val = train_test_split(
        range(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    return ImageSets(
        TensorDataset(images[train], labels[train]),
        TensorDataset(images[val], labels[val]),
        classes=[str(digit) for digit in range(10)],
        in_memory=True,
    )


@DATASETS.register("imagefolder")
def imagefolder(data: DataConfig) -> ImageSets:
    """Class folders under `root/train` and `root/val`, with the same classes in both."""
    if data.root is None:
        raise InputError("data.root", None, "must be given: the folder of train/ and val/")
    train, val = (_class_folders(data.root, split) for split in ("train", "val"))
    if train.classes != val.classes:
        strangers = sorted(set(train.classes) ^ set(val.classes))
        raise InputError(
            "data.root",
            data.root,
            f"train/ and val/ must hold the same classes; only in one: {', '.join(strangers[:5])}",
        )
    return ImageSets(train, val, train.classes)


@DATASETS.register("imagenet")
def imagenet(data: DataConfig) -> ImageSets:
    """ImageNet-1k as class folders: `imagefolder` with exactly 1000 classes."""
    sets = imagefolder(data)
    if len(sets.classes) != 1000:
        allowed = f"must hold ImageNet's 1000 classes, has {len(sets.classes)}"
        raise InputError("data.root", data.root, f"{allowed}; data=imagefolder takes any number")
    return sets


def _class_folders(root: str, split: str) -> datasets.ImageFolder:
    folder = Path(root) / split
    if not folder.is_dir():
        raise InputError("data.root", root, f"no folder {split}/ there; needs train/ and val/")
    try:
        return datasets.ImageFolder(str(folder))
    except FileNotFoundError as error:
        reason = str(error).splitlines()[0]
        raise InputError("data.root", root, f"no class folders of images ({reason})") from error


@DATASETS.register("cifar10")
def cifar10(data: DataConfig) -> ImageSets:
    """CIFAR-10 from `root`; fetched there only with `data.download`."""
    try:
        train, val = (
            datasets.CIFAR10(data.root, train=train, download=data.download)
            for train in (True, False)
        )
    except RuntimeError as error:
        allowed = "no CIFAR-10 there; data.download=true fetches it"
        raise InputError("data.root", data.root, allowed) from error
    except OSError as error:
        allowed = f"could not fetch CIFAR-10 ({error})"
        raise InputError("data.download", data.download, allowed) from error
    return ImageSets(train, val, train.classes)


@DATASETS.register("fake")
def fake(data: DataConfig, *, num_images: int, num_classes: int) -> ImageSets:
    """Noise images with labels, `num_images` to train on and as many to evaluate."""
    for key, value in (("num_images", num_images), ("num_classes", num_classes)):
        if value < 1:
            raise InputError(f"data.args.{key}", value, "must be a whole number > 0")
    train, val = (
        datasets.FakeData(
            num_images, (3, data.resolution, data.resolution), num_classes, random_offset=offset
        )
        for offset in (0, num_images)
    )
    return ImageSets(train, val, [str(index) for index in range(num_classes)], in_memory=True)
