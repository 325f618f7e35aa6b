"""Data sets seen through a transform, one image at a time, by whichever thread reads it."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from mobilenet_exp.config.schema import DataConfig
from mobilenet_exp.data.draws import Draws
from mobilenet_exp.data.reading import begin_reading
from mobilenet_exp.data.sampler import Key
from mobilenet_exp.data.transforms import EvalTransform, Late, TrainTransform, side_of_epoch
from mobilenet_exp.datasets.codec import Box
from mobilenet_exp.datasets.decode import Opened
from mobilenet_exp.datasets.images import ImageFiles

# images tried in the place of one that cannot be read
MAX_TRIES = 100


NOTHING_LEFT = Late()


@dataclass(frozen=True)
class Seen:
    """What is known of one image beside its pixels.

    `label` is -1 for an image that cannot be scored, and `note` then says why. `left_out`
    are images that could not be read and whose place it takes. `problem` ends a run.
    """

    label: int
    note: str = ""
    is_unturned: bool = False
    left_out: dict[str, str] = field(default_factory=dict)
    late: Late = NOTHING_LEFT
    problem: str = ""


@dataclass(frozen=True)
class Odd:
    """What was odd about the images of a batch.

    `left_out` maps names of images that could not be read to the reason; `num_unturned`
    counts those whose EXIF orientation was ignored.
    """

    left_out: dict[str, str]
    num_unturned: int = 0


class View(Protocol):
    """What feeds read: keys to pixels and what is known of them."""

    images: Dataset

    def side(self, key: Any) -> int:
        """Return the side in pixels of the input that a key asks for."""

    def read(self, key: Any, out: np.ndarray) -> Seen:
        """Write an image into `out` (side, side, 3) uint8."""

    def told(self, seen: list[Seen]) -> Any:
        """Return what a batch is accompanied by, besides its labels."""


def open_item(images: Dataset, index: int) -> tuple[Opened, int]:
    """Return an image and its label; raises OSError with the reason where it cannot be read."""
    begin_reading(index, images)
    if isinstance(images, ImageFiles):
        return images.open(index)
    image, label = images[index]
    return opened(image), int(label)


def opened(image: Any) -> Opened:
    """Return the image of a data set, Pillow's or a tensor (C, H, W), as if from a file.

    A tensor of floats in [0, 1] is rounded to 8 bits, as all image files are.
    """
    if isinstance(image, Image.Image):
        pixels = np.array(image.convert("RGB"))
    else:
        image = F.to_dtype(torch.as_tensor(image), torch.uint8, scale=True)
        pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()

    def decode(box: Box | None) -> np.ndarray:
        if box is None:
            return pixels
        return pixels[box.top : box.top + box.height, box.left : box.left + box.width]

    height, width, _ = pixels.shape
    return Opened(height, width, decode)


def reason_of(error: OSError) -> str:
    """Return a decoder's message, which may have several lines, in one."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def name_of(images: Dataset, index: int) -> str:
    """Return an image's name below its root, or its number where it is no file."""
    return images.name(index) if isinstance(images, ImageFiles) else f"image {index}"


class EvalView:
    """A view for evaluation; keys are numbers of images."""

    def __init__(self, images: Dataset, transform: EvalTransform) -> None:
        self.images, self.transform = images, transform

    def side(self, key: int) -> int:
        return self.transform.side

    def read(self, key: int, out: np.ndarray) -> Seen:
        try:
            image, label = open_item(self.images, key)
            self.transform(image, out)
        except OSError as error:
            out[:] = 0
            return Seen(-1, reason_of(error))
        return Seen(label, image.note, image.is_unturned)

    def told(self, seen: list[Seen]) -> list[str]:
        """Return the images' notes."""
        return [each.note for each in seen]


class TrainView:
    """A training set whose random transforms follow a seed that comes with the index.

    Where `data.on_bad_image` is skip, the next image that can be read takes the place of
    one that cannot: the same in every process, and no batch gets smaller.
    """

    def __init__(self, images: Dataset, data: DataConfig) -> None:
        self.images, self.data = images, data
        # by side; a bad description is refused here
        side = side_of_epoch(data, 1, 1)
        self._transforms = {side: TrainTransform(data, side)}
        self.draws_globally = self._transforms[side].draws_globally

    def side(self, key: Key) -> int:
        return key.side

    def read(self, key: Key, out: np.ndarray) -> Seen:
        count, left_out = len(self.images), {}
        tries = MAX_TRIES if self.data.on_bad_image == "skip" else 1
        transform = self._transforms.get(key.side)
        if transform is None:
            transform = self._transforms[key.side] = TrainTransform(self.data, key.side)
        for number in range(key.image, key.image + min(tries, count)):
            index = number % count
            try:
                image, label = open_item(self.images, index)
                late = transform(image, Draws(key.seed), out)
            except OSError as error:
                left_out[name_of(self.images, index)] = reason_of(error)
                continue
            return Seen(label, image.note, image.is_unturned, left_out, late)
        return Seen(-1, problem=self._problem(left_out))

    def told(self, seen: list[Seen]) -> Odd:
        """Return what was odd about the images."""
        left_out: dict[str, str] = {}
        for each in seen:
            left_out |= each.left_out
        return Odd(left_out, sum(each.is_unturned for each in seen))

    def _problem(self, left_out: dict[str, str]) -> str:
        if len(left_out) > 1:
            return (
                f"{len(left_out)} images in a row cannot be read; the first: {first_of(left_out)}"
            )
        if isinstance(self.images, ImageFiles):
            return f"{self.images.root}/{first_of(left_out)}; {BAD_IMAGE_ADVICE}"
        (reason,) = left_out.values()
        return f"{reason}; {BAD_IMAGE_ADVICE}"


BAD_IMAGE_ADVICE = (
    "to resume, repair the file, or repeat the command with data.on_bad_image=skip; "
    "without the file it is another set of images, which needs another run.root"
)


def first_of(left_out: dict[str, str]) -> str:
    """Return the first of several names with its reason."""
    return next(f"{name} {reason}" for name, reason in left_out.items())
