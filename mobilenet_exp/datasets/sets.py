"""Data sets by name, one split at a time.

Nothing is downloaded unless `data.download` says so.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from torchvision import datasets

from mobilenet_exp.config.schema import ImagesConfig
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.ranges import ABOVE_0, WHOLE
from mobilenet_exp.core.text import printable
from mobilenet_exp.datasets.folders import find_classes, list_images
from mobilenet_exp.datasets.imagenet import class_ids, flat_images
from mobilenet_exp.datasets.images import DATASETS, ImageFiles, ImageSet
from mobilenet_exp.datasets.listing import list_tree
from mobilenet_exp.datasets.torchvision_sets import TORCHVISION_SETS

NO_SPLIT = "has no folder {}/; it must hold train/ and val/"

# different images; the others are these again
DIFFERENT = 64

# an option's type carries its range
Count = Annotated[int, WHOLE]


def build_image_set(data: ImagesConfig, split: str) -> ImageSet:
    """Build `train` or `val` of the data set named by `data.name`.

    Raises InputError for an unknown name or option and for missing files.
    """
    DATASETS.check_options(data.name, data.args, "data.args")
    if data.labels and data.name != "imagenet":
        raise InputError("data.labels", data.labels, "is only for data=imagenet")
    if data.val_share is not None and data.name != "imagefolder":
        raise InputError("data.val_share", data.val_share, "is only for data=imagefolder")
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
    """Class folders of images under `root/train` and `root/val`.

    With `data.val_share` the class folders are in `root` itself, and that fraction of each
    class is held out. To evaluate, `root` may also be the validation set itself.
    """
    folder = _split_folder(data, split)
    if data.val_share is not None:
        return _share_of_tree(data, split)
    has_split = any((folder.parent / each).is_dir() for each in ("train", "val"))
    if split == "val" and not has_split and folder.parent.is_dir():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError("data.root", data.root, _no_split(folder))
    return _image_tree(data, folder)


def _no_split(folder: Path) -> str:
    """Say what to do about a folder without train/ or val/."""
    problem = NO_SPLIT.format(folder.name)
    other = folder.parent / ("train" if folder.name == "val" else "val")
    if other.is_dir():
        way_out = f"data.root={other} data.val_share=0.2 splits the other one"
        return f"{problem}; {way_out}" if other.name == "train" else problem
    if folder.parent.is_dir() and find_classes(folder.parent):
        return f"{problem}; if it holds class folders itself, data.val_share=0.2 splits them"
    return problem


def _share_of_tree(data: ImagesConfig, split: str) -> ImageSet:
    """Split each class of one tree in two, by a hash of the files' names and the seed.

    An image that is added later moves at most one other image to the other split.
    """
    root = Path(str(data.root))
    if not root.is_dir():
        raise InputError("data.root", data.root, "no such folder")
    for name in set(find_classes(root)) & {"train", "val"}:
        if find_classes(root / name):
            problem = f"is for class folders without a split; did you mean data.root={root}/train?"
            if name == "val":
                problem = "is for class folders without a split; data.root has val/"
            raise InputError("data.val_share", data.val_share, problem)
    whole = _image_tree(data, root)
    files = whole.images
    assert isinstance(files, ImageFiles)
    assert data.val_share is not None
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(files.labels.tolist()):
        by_class.setdefault(label, []).append(index)
    held_out: set[int] = set()
    for label, indices in by_class.items():
        if len(indices) < 2:
            problem = f"{whole.classes[label]} has a single image, which cannot be split"
            raise InputError("data.root", data.root, problem)
        count = min(max(1, round(data.val_share * len(indices))), len(indices) - 1)
        held_out |= set(sorted(indices, key=lambda i: _draw(files.name(i), data.val_seed))[:count])
    chosen = [i for i in range(len(files)) if (i in held_out) == (split == "val")]
    return replace(whole, images=files.chosen(chosen))


def _draw(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


@DATASETS.register("photos")
def photos(data: ImagesConfig, split: str) -> ImageSet:
    """Crops of photographs that packages ship, as `python -m mobilenet_exp photos` writes them."""
    if data.root is not None and not Path(data.root).is_dir():
        problem = f"is not there yet: python -m mobilenet_exp photos {data.root} writes it"
        raise InputError("data.root", data.root, problem)
    return imagefolder(data, split)


@DATASETS.register("packed")
def packed(
    data: ImagesConfig,
    split: str,
    *,
    classes: str | None = None,
    verify: bool = True,
    cache: str | None = None,
    cache_gb: Annotated[float, ABOVE_0] = 200.0,
) -> ImageSet:
    """Shards of images, as `python -m mobilenet_exp pack` writes them, or from elsewhere.

    `root` is a folder, or an address that fsspec knows (s3://, gs://, https://), whose
    shards are fetched into `cache` (null: in the user's cache folder), up to `cache_gb`.
    `classes=imagenet` names the classes of shards whose labels are ImageNet's numbers.
    `verify` verifies each image's checksum when it is read.
    """
    # remote sets need fsspec
    from mobilenet_exp.datasets.packed.images import packed_set

    return packed_set(
        data, split, classes=classes, verify=verify, cache=cache, cache_bytes=cache_gb * 1e9
    )


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
        images = flat_images(folder, data.labels)
        images = replace(images, upright=data.exif == "apply")
        return ImageSet(images, class_ids())
    if split == "val" and list_images(folder).images:
        problem = f"the images of one flat folder, {folder}, need data.labels=FILE"
        raise InputError("data.labels", data.labels, problem)
    tree = _image_tree(data, folder)
    if tree.classes != class_ids():
        unknown = sorted(set(tree.classes) - set(class_ids()))
        problem = f"must hold ImageNet's 1000 classes, has {len(tree.classes)}"
        if unknown:
            problem += f", and {unknown[0]} is not one of them"
        raise InputError("data.root", data.root, f"{problem}; data=imagefolder takes any number")
    return tree


def _split_folder(data: ImagesConfig, split: str) -> Path:
    if data.root is None:
        raise InputError("data.root", None, "must be given: the folder that holds train/ and val/")
    return Path(data.root) / split


def _image_tree(data: ImagesConfig, folder: Path) -> ImageSet:
    """Return the images of class folders, with the files that were passed over."""
    found = list_tree(folder)
    images = ImageFiles(
        folder,
        found.names,
        found.labels,
        others=found.others,
        upright=data.exif == "apply",
    )
    return ImageSet(images, list(map(printable, found.classes)))


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


class RepeatedNoise(Dataset):
    """`size` images (3, side, side) uint8 of noise, in memory; their labels take turns."""

    def __init__(self, size: int, side: int, num_classes: int) -> None:
        self.size, self.num_classes = size, num_classes
        generator = torch.Generator().manual_seed(0)
        shape = (min(size, DIFFERENT), 3, side, side)
        self._images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._images[index % len(self._images)], index % self.num_classes


@DATASETS.register("noise")
def noise(data: ImagesConfig, split: str, *, num_images: Count, num_classes: Count) -> ImageSet:
    """Noise in memory, `num_images` of few different ones to train on and to evaluate."""
    images = RepeatedNoise(num_images, data.resolution, num_classes)
    classes = [str(index) for index in range(num_classes)]
    return ImageSet(images, classes, in_memory=True)


for _name, _set in TORCHVISION_SETS.items():
    DATASETS.register(_name)(_set)
