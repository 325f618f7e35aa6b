"""What a builder of a data set returns, and the names under which builders are known."""

from dataclasses import dataclass

from torch.utils.data import Dataset

from mobilenet_exp.core.registry import Registry

DATASETS: Registry = Registry("data.name")


@dataclass(frozen=True)
class ImageSet:
    """One split: pairs (image, label), and class names by label.

    Images are Pillow's, or tensors (C, H, W): uint8, or floats in [0, 1].
    """

    images: Dataset
    classes: list[str]
    in_memory: bool = False
