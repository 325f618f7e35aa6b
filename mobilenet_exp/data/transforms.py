"""From an opened image to the network's input in uint8: augmentation, resizing, cropping.

Knows no data set. What is random follows from the image's own draws; only the policies of
`auto_augment` draw from the global generators of torch, numpy and random.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from mobilenet_exp.config.schema import DataConfig, ImagesConfig
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data.draws import Draws, Erasure
from mobilenet_exp.data.preprocessing import Preprocessing
from mobilenet_exp.data.resizing import Middle, as_image, as_pixels, resize
from mobilenet_exp.datasets.codec import Box
from mobilenet_exp.datasets.decode import Opened

# pixels of one step of a progressive side: the total stride of all networks
SIDE_STEP = 32
# timm's notation: magnitude, layers, probability, spread, maximum, whether it only increases
RAND_AUGMENT = re.compile(r"rand(-(m|n|p|mstd|mmax)\d+(\.\d+)?|-inc[01])+")
AUGMENTS = ("random_resized_crop", "inception", "pad_crop_flip", "affine", "none")
FLIPS = ("random_resized_crop", "inception", "pad_crop_flip")
FLIPPED = 0.5
INTERPOLATIONS = ("bilinear", "bicubic")
# times that an image may be longer than it is wide before its ends are cut off unseen
LONGEST = 16
# slim's inception preprocessing: the most by which brightness, contrast, saturation and hue
# change
INCEPTION = (32 / 255, 0.5, 0.5, 0.2)


class Late(NamedTuple):
    """What is left to do with an input, where it is done for a whole batch."""

    is_flipped: bool = False
    erasures: tuple[Erasure, ...] = ()


class TrainTransform:
    """The augmentation that `data` describes, up to normalisation.

    In this order: `augment`, `color_jitter`, `auto_augment`; then `random_erase`, which is
    drawn here and done after normalisation. `side` in pixels replaces `train_resolution`, and
    that `resolution`.
    """

    def __init__(self, data: DataConfig, side: int | None = None) -> None:
        self.data, self.exact = data, data.resize == "exact"
        self.side = side or data.train_resolution or data.resolution
        if data.augment not in AUGMENTS:
            problem = f"not known; allowed: {', '.join(AUGMENTS)}"
            raise InputError("data.augment", data.augment, problem)
        jitter = data.color_jitter
        distortions = {
            INCEPTION: data.augment == "inception",
            (jitter, jitter, jitter, 0.0): jitter > 0,
        }
        self._distortions = [ranges for ranges, is_on in distortions.items() if is_on]
        self._policy = _auto_augment(data)

    @property
    def draws_globally(self) -> bool:
        """Return whether it needs the global generators, so a process of its own."""
        return bool(self._policy)

    def __call__(self, image: Opened, draws: Draws, out: np.ndarray) -> Late:
        """Write an input into `out` (side, side, 3) uint8; return what is left to do."""
        is_flipped = self._augment(image, draws, out)
        for ranges in self._distortions:
            drawn = self._image(_flipped(out) if is_flipped else out)
            out[:], is_flipped = as_pixels(_distorted(drawn, draws, ranges)), False
        if self._policy:
            out[:] = self._changed(_flipped(out) if is_flipped else out, draws)
            is_flipped = False
        noise = self.data.erase_mode == "pixel"
        return Late(is_flipped, draws.erasures(self.side, self.data.random_erase, noise=noise))

    def _augment(self, image: Opened, draws: Draws, out: np.ndarray) -> bool:
        """Do what `augment` says, and return whether the input is to be flipped."""
        name, box = self.data.augment, None
        if name in ("random_resized_crop", "inception"):
            box = draws.crop(image.height, image.width, self.data.min_crop_area)
        interpolation = self.data.train_interpolation
        if interpolation == "random":
            interpolation = INTERPOLATIONS[draws.below(2)]
        resize(image.decode(box), out, interpolation, exact=self.exact)
        if name == "pad_crop_flip":
            _shift(draws, out)
        is_flipped = name in FLIPS and draws.chance(FLIPPED)
        if name == "affine":
            # no flip: a mirrored digit is another sign
            out[:] = as_pixels(_turned(self._image(out), draws, self.side))
        return is_flipped

    def _changed(self, pixels: np.ndarray, draws: Draws) -> np.ndarray:
        """Apply the policy."""
        image = self._image(pixels)
        with draws.as_global():
            for step in self._policy:
                image = step(image)
        return as_pixels(image)

    def _image(self, pixels: np.ndarray) -> Tensor | Image.Image:
        # of its own: what it becomes is written over the pixels
        return as_image(pixels.copy(), exact=self.exact)


def _flipped(pixels: np.ndarray) -> np.ndarray:
    return pixels[:, ::-1]


def _shift(draws: Draws, out: np.ndarray) -> None:
    """Pad by an eighth on all sides, and crop anywhere."""
    pad = len(out) // 8
    padded = np.pad(out, ((pad, pad), (pad, pad), (0, 0)))
    top, left = draws.below(2 * pad + 1), draws.below(2 * pad + 1)
    out[:] = padded[top : top + len(out), left : left + len(out)]


def _turned(image: Tensor | Image.Image, draws: Draws, side: int) -> Tensor | Image.Image:
    """Turn by up to 10 degrees, shift by up to a tenth, scale by 0.9 to 1.1."""
    angle = draws.uniform(-10, 10)
    shift = [round(draws.uniform(-0.1 * side, 0.1 * side)) for _ in "xy"]
    scale, bilinear = draws.uniform(0.9, 1.1), v2.InterpolationMode.BILINEAR
    return F.affine(image, angle, shift, scale, [0.0, 0.0], interpolation=bilinear, fill=0)


def _distorted(
    image: Tensor | Image.Image, draws: Draws, ranges: Sequence[float]
) -> Tensor | Image.Image:
    """Change brightness, contrast, saturation and hue, in any order, by up to `ranges`."""
    order = draws.order(4)
    steps: list[Callable] = [F.adjust_brightness, F.adjust_contrast]
    steps += [F.adjust_saturation, F.adjust_hue]
    brightness, contrast, saturation, hue = ranges
    factors = [
        draws.uniform(max(0.0, 1 - most), 1 + most) for most in (brightness, contrast, saturation)
    ]
    factors.append(draws.uniform(-hue, hue) if hue else 0.0)
    for index in order:
        if ranges[index]:
            image = steps[index](image, factors[index])
    return image


def _auto_augment(data: DataConfig) -> list[Callable]:
    """Return the policy by name: AutoAugment, TrivialAugment, or RandAugment as timm has it."""
    name = data.auto_augment
    if name is None:
        return []
    if name in ("imagenet", "cifar10"):
        return [v2.AutoAugment(v2.AutoAugmentPolicy(name))]
    if name == "ta_wide":
        return [v2.TrivialAugmentWide()]
    # the area that a shift uncovers is filled with the mean colour
    colour = tuple(round(255 * value) for value in data.mean)
    try:
        if not RAND_AUGMENT.fullmatch(name):
            # timm ignores what it does not know
            raise ValueError("not known")
        # timm takes most of a second to import
        from timm.data.auto_augment import rand_augment_transform

        policy = rand_augment_transform(name, {"img_mean": colour})
    except (ValueError, AssertionError, KeyError) as error:
        known = "imagenet, cifar10, ta_wide, or RandAugment in timm's notation, as rand-m9-mstd0.5"
        raise InputError("data.auto_augment", name, f"not understood; allowed: {known}") from error
    # timm's operations are Pillow's
    return [_as_pillow, policy]


def _as_pillow(image: object) -> object:
    return F.to_pil_image(image) if isinstance(image, Tensor) else image


class EvalTransform:
    """Resize the shorter side to resolution / crop_pct and crop the centre.

    The resized side is cut to whole pixels, as timm does. What lies right of the centre and
    below it is not decoded, unless `exact`; of an image more than LONGEST times as long as it is
    wide, the middle alone.
    """

    def __init__(self, data: ImagesConfig | Preprocessing, *, exact: bool) -> None:
        self.side, self.interpolation, self.exact = data.resolution, data.interpolation, exact
        # 224 / (224 / 232) must stay 232
        self.resized = math.floor(data.resolution / data.crop_pct + 1e-6)

    def __call__(self, image: Opened, out: np.ndarray) -> None:
        """Write an input into `out` (side, side, 3) uint8."""
        longest = LONGEST * min(image.height, image.width)
        top, left = (max(0, (size - longest) // 2) for size in (image.height, image.width))
        height, width = image.height - 2 * top, image.width - 2 * left
        middle = Middle.of(height, width, self.resized, self.side)
        needed = middle.needed(self.interpolation, exact=self.exact)
        if top or left:
            part = needed or Box(0, 0, height, width)
            needed = Box(part.top + top, part.left + left, part.height, part.width)
        pixels = image.decode(needed)
        middle.put(pixels, out, self.interpolation, exact=self.exact)


def side_of_epoch(data: DataConfig, epoch: int, epochs: int) -> int:
    """Return training's side in pixels in an epoch counted from 1.

    With `progressive_from` it rises linearly over the epochs, in steps of SIDE_STEP.
    """
    last = data.train_resolution or data.resolution
    first = data.progressive_from
    if first is None or epochs == 1:
        return last
    risen = first + (last - first) * (epoch - 1) / (epochs - 1)
    return last if epoch == epochs else min(last, int(risen) // SIDE_STEP * SIDE_STEP)
