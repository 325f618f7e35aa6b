"""Data sets by name, one split at a time. Knows no transform and no loader.

Nothing is downloaded unless `data.download` says so.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch.utils.data import Dataset, TensorDataset
from torchvision import datasets

from mobilenet_exp.config.schema import ImagesConfig
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.ranges import WHOLE
from mobilenet_exp.core.registry import Registry
from mobilenet_exp.data.imagenet import class_ids, flat_images
from mobilenet_exp.data.images import ImageFiles, find_images

DATASETS: Registry = Registry("data.name")

NO_SPLIT = "has no folder {}/; it must hold train/ and val/"

# an option's type carries its range
Count = Annotated[int, WHOLE]


@dataclass(frozen=True)
class ImageSet:
    """One split: pairs (image, label), and class names by label."""

    images: Dataset
    classes: list[str]
    in_memory: bool = False


def build_image_set(data: ImagesConfig, split: str) -> ImageSet:
    """Build `train` or `val` of the data set named by `data.name`.

    Raises InputError for an unknown name or option and for missing files.
    """
    DATASETS.check_options(data.name, data.args, "data.args")
    if data.labels and data.name != "imagenet":
        raise InputError("data.labels", data.labels, "is only for data=imagenet")
    return DATASETS.get(data.name)(data, split, **data.args)


@DATASETS.register("digits")
def digits(data: ImagesConfig, split: str) -> ImageSet:
    """scikit-learn's handwritten digits; a stratified fifth, always the same, is held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    # 8x8 values 0..16, repeated over three colour channels
    images = torch.from_numpy(pixels).float().mul(255 / 16).round().byte()
    images = images.view(-1, 1, 8, 8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(labels).long()
    parts = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    chosen = parts[0 if split == "train" else 1]
    classes = [str(digit) for digit in range(10)]
    return ImageSet(TensorDataset(images[chosen], labels[chosen]), classes, in_memory=True)


@DATASETS.register("imagefolder")
def imagefolder(data: ImagesConfig, split: str) -> ImageSet:
    """Class folders of images under `root/train` and `root/val`."""
    folder = _split_folder(data, split)
    if not folder.is_dir():
        raise InputError("data.root", data.root, NO_SPLIT.format(split))
    return _image_tree(data, folder)


@DATASETS.register("imagenet")
def imagenet(data: ImagesConfig, split: str) -> ImageSet:
    """ImageNet-1k: class folders named by WordNet id; val/ may be one flat folder.

    For the latter `data.labels` is the file of labels. Without a folder val/, `root` is
    the validation set itself.
    """
    folder = _split_folder(data, split)
    if split == "val" and not folder.is_dir():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError("data.root", data.root, NO_SPLIT.format(split))
    if split == "val" and data.labels:
        return ImageSet(flat_images(folder, data.labels), class_ids())
    if split == "val" and find_images(folder):
        problem = f"the images of one flat folder, {folder}, need data.labels=FILE"
        raise InputError("data.labels", data.labels, problem)
    images = _image_tree(data, folder)
    if images.classes != class_ids():
        strangers = sorted(set(images.classes) - set(class_ids()))
        problem = f"must hold ImageNet's 1000 classes, has {len(images.classes)}"
        if strangers:
            problem += f", and {strangers[0]} is not one of them"
        raise InputError("data.root", data.root, f"{problem}; data=imagefolder takes any number")
    return images


def _split_folder(data: ImagesConfig, split: str) -> Path:
    if data.root is None:
        raise InputError("data.root", None, "must be given: the folder that holds train/ and val/")
    return Path(data.root) / split


def _image_tree(data: ImagesConfig, folder: Path) -> ImageSet:
    try:
        # torchvision's walk of the folders
        found = _Tree(str(folder), loader=None)
    except FileNotFoundError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            "data.root", data.root, f"has no class folders of images ({reason})"
        ) from error
    return ImageSet(ImageFiles(folder, found.samples), found.classes)


class _Tree(datasets.ImageFolder):
    """torchvision's ImageFolder without hidden folders."""

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        classes = [name for name in super().find_classes(directory)[0] if name[0] != "."]
        return classes, {name: label for label, name in enumerate(classes)}


@DATASETS.register("cifar10")
def cifar10(data: ImagesConfig, split: str) -> ImageSet:
    """CIFAR-10 from `root`; fetched there only with `data.download`."""
    if data.root is None:
        raise InputError("data.root", None, "must be given: the folder of CIFAR-10")
    try:
        images = datasets.CIFAR10(data.root, train=split == "train", download=data.download)
    except RuntimeError as error:
        problem = "CIFAR-10 is not there; data.download=true downloads it"
        raise InputError("data.root", data.root, problem) from error
    except OSError as error:
        problem = f"CIFAR-10 could not be downloaded ({error})"
        raise InputError("data.download", data.download, problem) from error
    return ImageSet(images, images.classes)


@DATASETS.register("fake")
def fake(data: ImagesConfig, split: str, *, num_images: Count, num_classes: Count) -> ImageSet:
    """Noise images with labels, `num_images` to train on and as many to evaluate."""
    images = datasets.FakeData(
        num_images,
        (3, data.resolution, data.resolution),
        num_classes,
        random_offset=0 if split == "train" else num_images,
    )
    return ImageSet(images, [str(index) for index in range(num_classes)], in_memory=True)
