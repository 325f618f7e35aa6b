"""Well-known data sets that torchvision reads from `data.root`, or downloads.

It downloads with `data.download` only. Sets of image files are read file by file; small sets
are held in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from mobilenet_exp.config.schema import ImagesConfig
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.datasets.images import ImageFiles, ImageSet
from mobilenet_exp.datasets.listing import Names

FLOWERS = 102
DIGITS = [str(digit) for digit in range(10)]


@dataclass(frozen=True)
class TorchvisionSet:
    """One data set: its name for people, and how torchvision builds parts of it.

    `train` and `val` are the parts that are joined for each split. `listed` returns a part's
    files and labels where it is files; without it images are held in memory.
    """

    title: str
    build: Callable[..., Any]
    train: tuple[Any, ...]
    val: tuple[Any, ...]
    listed: Callable[[Any], tuple[list, list[int]]] | None = None
    classes: Callable[[Any], list[str]] = lambda part: list(part.classes)

    def __call__(self, data: ImagesConfig, split: str) -> ImageSet:
        if data.root is None:
            raise InputError("data.root", None, f"must be given: the folder of {self.title}")
        names = self.train if split == "train" else self.val
        parts = [self._part(data, name) for name in names]
        if self.listed is None:
            return ImageSet(parts[0], self.classes(parts[0]), in_memory=True)
        root, files, labels = Path(data.root), [], []
        for part in parts:
            paths, theirs = self.listed(part)
            files += [str(Path(path).relative_to(root)) for path in paths]
            labels += theirs
        images = ImageFiles(
            root, Names.of(files), np.array(labels, np.int32), upright=data.exif == "apply"
        )
        return ImageSet(images, self.classes(parts[0]))

    def _part(self, data: ImagesConfig, name: Any) -> Any:
        word = "train" if isinstance(name, bool) else "split"
        try:
            return self.build(str(data.root), **{word: name}, download=data.download)
        except RuntimeError as error:
            problem = f"{self.title} is not there; data.download=true downloads it"
            raise InputError("data.root", data.root, problem) from error
        except OSError as error:
            if not data.download:
                problem = f"{self.title} is incomplete there ({error})"
                raise InputError("data.root", data.root, problem) from error
            problem = f"{self.title} could not be downloaded ({error})"
            raise InputError("data.download", data.download, problem) from error


TORCHVISION_SETS = {
    "cifar10": TorchvisionSet("CIFAR-10", datasets.CIFAR10, (True,), (False,)),
    "cifar100": TorchvisionSet("CIFAR-100", datasets.CIFAR100, (True,), (False,)),
    "svhn": TorchvisionSet("SVHN", datasets.SVHN, ("train",), ("test",), classes=lambda _: DIGITS),
    "fashion_mnist": TorchvisionSet("Fashion-MNIST", datasets.FashionMNIST, (True,), (False,)),
    "imagenette": TorchvisionSet(
        "Imagenette",
        datasets.Imagenette,
        ("train",),
        ("val",),
        lambda part: ([path for path, _ in part._samples], [label for _, label in part._samples]),
        lambda part: [names[0] for names in part.classes],
    ),
    # its 1,020 images of validation are trained on, too, as papers on transfer do
    "flowers102": TorchvisionSet(
        "Oxford Flowers",
        datasets.Flowers102,
        ("train", "val"),
        ("test",),
        lambda part: (part._image_files, part._labels),
        lambda _: [f"flower {number:03d}" for number in range(1, FLOWERS + 1)],
    ),
    "oxford_pets": TorchvisionSet(
        "Oxford-IIIT Pets",
        datasets.OxfordIIITPet,
        ("trainval",),
        ("test",),
        lambda part: (part._images, part._labels),
    ),
    "food101": TorchvisionSet(
        "Food-101",
        datasets.Food101,
        ("train",),
        ("test",),
        lambda part: (part._image_files, part._labels),
    ),
}
