"""From an opened image to the network's input: training and evaluation transforms, normalising.

Random steps are torchvision's and timm's own. They draw from the global generators, which are
seeded anew for each image, so that its augmentation follows from its seed alone.
"""

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from mobilenet_exp.config.schema import DataConfig, Preprocessing
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.registry import Registry
from mobilenet_exp.data.resizing import Middle, as_image, as_pixels, resize
from mobilenet_exp.datasets.codec import Box
from mobilenet_exp.datasets.decode import Opened

# pixels of one step of a progressive side: the total stride of all networks
SIDE_STEP = 32
# timm's notation: magnitude, layers, probability, spread, maximum, whether it only increases
RAND_AUGMENT = re.compile(r"rand(-(m|n|p|mstd|mmax)\d+(\.\d+)?|-inc[01])+")
BILINEAR = v2.InterpolationMode.BILINEAR
FLIP = v2.RandomHorizontalFlip()
# slim's inception preprocessing: changes of brightness, contrast, saturation and hue
INCEPTION = (32 / 255, 0.5, 0.5, 0.2)
# A builder gets the side of the input in pixels and returns an `Augment`.
AUGMENTS: Registry = Registry("data.augment")
# aspect ratios of a random crop
ASPECTS = [3 / 4, 4 / 3]
# timm's RandomErasing: parts of the area, aspect ratios, tries
ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECTS = (0.3, 1 / 0.3)
ERASE_TRIES = 10
# times that an image may be longer than it is wide before its ends are cut off unseen
LONGEST = 16
# values that a CPU normalises at once: torch computes so few in one thread; its other threads
# would stay awake for a while after each batch, and take their cores from the workers
AT_ONCE = 32_768


class Augment(NamedTuple):
    """What is done to each training image.

    `steps` come after resizing: transforms of images (3, side, side) uint8, or of Pillow's with
    `data.resize=exact`, whose random draws are from torch's, numpy's and Python's global
    generators. `crops`: a crop of any place, size and, within limits, aspect ratio is resized
    to the side, instead of the whole image.
    """

    steps: list[Callable]
    crops: bool = False


@AUGMENTS.register("random_resized_crop")
def random_resized_crop(side: int) -> Augment:
    return Augment([FLIP], crops=True)


@AUGMENTS.register("inception")
def inception(side: int) -> Augment:
    return Augment([FLIP, v2.ColorJitter(*INCEPTION)], crops=True)


@AUGMENTS.register("pad_crop_flip")
def pad_crop_flip(side: int) -> Augment:
    return Augment([v2.RandomCrop(side, padding=side // 8), FLIP])


@AUGMENTS.register("affine")
def affine(side: int) -> Augment:
    # no flip: a mirrored digit is another sign
    return Augment([v2.RandomAffine(10, (0.1, 0.1), (0.9, 1.1), interpolation=BILINEAR)])


@AUGMENTS.register("none")
def none(side: int) -> Augment:
    return Augment([])


class Erasure(NamedTuple):
    """A rectangle of the network's input and what fills it; None: zeros, which is the mean."""

    box: Box
    noise: np.ndarray | None


class TrainTransform:
    """The augmentation that `data` describes, up to normalisation, at one side in pixels.

    In this order: `augment`, `color_jitter`, `auto_augment`; then `random_erase`, which is
    drawn here and done after normalisation.
    """

    def __init__(self, data: DataConfig, side: int) -> None:
        self.data, self.side, self.exact = data, side, data.resize == "exact"
        self.steps, self.crops = AUGMENTS.get(data.augment)(side)
        if jitter := data.color_jitter:
            self.steps = [*self.steps, v2.ColorJitter(jitter, jitter, jitter)]
        if data.auto_augment:
            self.steps = [*self.steps, *_auto_augment(data.auto_augment, data.mean)]

    def __call__(self, image: Opened, seed: int, out: np.ndarray) -> Erasure | None:
        """Write an input into `out` (side, side, 3) uint8; return what is erased of it later.

        Changes the global generators.
        """
        # not torch.manual_seed, which keeps a note of each call for a GPU that is not in use
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        box = None
        if self.crops:
            # known before anything is decoded: only this part is
            whole = torch.empty(3, image.height, image.width, device="meta")
            scale = [self.data.min_crop_area, 1.0]
            top, left, height, width = v2.RandomResizedCrop.get_params(whole, scale, ASPECTS)
            box = Box(top, left, height, width)
        interpolation = self.data.train_interpolation
        if interpolation == "random":
            interpolation = ("bilinear", "bicubic")[int(torch.randint(2, ()))]
        resize(image.decode(box), out, interpolation, exact=self.exact)
        if self.steps:
            # of its own: what it becomes is written over the pixels
            changed: Tensor | Image.Image = as_image(out.copy(), exact=self.exact)
            for step in self.steps:
                changed = step(changed)
            out[:] = as_pixels(changed)
        return self._erasure() if self.data.random_erase else None

    def _erasure(self) -> Erasure | None:
        """Return what timm's RandomErasing would erase."""
        if random.random() > self.data.random_erase:
            return None
        logs = tuple(map(math.log, ERASED_ASPECTS))
        for _ in range(ERASE_TRIES):
            area = random.uniform(*ERASED_AREA) * self.side**2
            aspect = math.exp(random.uniform(*logs))
            high, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if wide < self.side and high < self.side:
                top, left = random.randint(0, self.side - high), random.randint(0, self.side - wide)
                is_noise = self.data.erase_mode == "pixel"
                noise = torch.empty((3, high, wide)).normal_().numpy() if is_noise else None
                return Erasure(Box(top, left, high, wide), noise)
        return None


def _auto_augment(name: str, mean: Sequence[float]) -> list[Callable]:
    """Return the policy by name: AutoAugment, TrivialAugment, or RandAugment as timm has it."""
    if name in ("imagenet", "cifar10"):
        return [v2.AutoAugment(v2.AutoAugmentPolicy(name))]
    if name == "ta_wide":
        return [v2.TrivialAugmentWide()]
    # the area that a shift uncovers is filled with the mean colour
    colour = tuple(round(255 * value) for value in mean)
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


def _as_pillow(image: Tensor | Image.Image) -> Image.Image:
    return F.to_pil_image(image) if isinstance(image, Tensor) else image


class EvalTransform:
    """Resize the shorter side to resolution / crop_pct and crop the centre.

    The resized side is cut to whole pixels, as timm does. What lies right of the centre and
    below it is not decoded, unless `exact`; of an image more than LONGEST times as long as it is
    wide, the middle alone.
    """

    def __init__(self, data: Preprocessing, *, exact: bool) -> None:
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


class Normaliser:
    """Normalises batches by `mean` and `std`, of pixels scaled to [0, 1]."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.device = device
        self._mean, self._std = torch.tensor(mean), torch.tensor(std)
        # mean and deviation of a row of pixels, by its length
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        """Return the one stream of a GPU on which batches are copied and normalised."""
        return torch.cuda.Stream(self.device)

    def __call__(self, pixels: Tensor, erasures: Mapping[int, Erasure] | None = None) -> Tensor:
        """Return images (N, 3, H, W) float32 in channels_last from pixels (N, H, W, 3) uint8.

        `erasures` are by the image's number in the batch.
        """
        pixels = pixels.to(self.device, non_blocking=self.device.type == "cuda")
        out = torch.empty(pixels.shape, device=self.device)
        side = pixels.shape[2]
        if side not in self._rows:
            mean, std = (each.repeat(side).to(self.device) for each in (self._mean, self._std))
            self._rows[side] = mean, std
        # in whole rows, which vectorise
        mean, std = self._rows[side]
        source, rows = pixels.view(-1, len(mean)), out.view(-1, len(mean))
        few = max(1, AT_ONCE // len(mean)) if self.device.type == "cpu" else max(1, len(rows))
        for first in range(0, len(rows), few):
            part = slice(first, first + few)
            rows[part].copy_(source[part]).mul_(1 / 255).sub_(mean).div_(std)
        images = out.permute(0, 3, 1, 2)
        for number, (box, noise) in (erasures or {}).items():
            part = images[number, :, box.top : box.top + box.height]
            part = part[:, :, box.left : box.left + box.width]
            if noise is None:
                part.zero_()
            else:
                part.copy_(torch.from_numpy(noise))
        return images


def side_of_epoch(data: DataConfig, epoch: int, epochs: int) -> int:
    """Return training's side in pixels in an epoch counted from 1.

    With `progressive_from` it rises linearly over the epochs, in steps of SIDE_STEP.
    """
    last, first = data.train_resolution or data.resolution, data.progressive_from
    if first is None or epochs == 1 or epoch == epochs:
        return last
    risen = first + (last - first) * (epoch - 1) / (epochs - 1)
    return min(last, int(risen) // SIDE_STEP * SIDE_STEP)
