"""From a decoded image to the network's input: augmentation, cropping, normalisation.

Knows no data set and no loader. Everything random draws from the global generators of
torch, numpy and random, which the loaders seed for each image.
"""

import math
import re

import torch
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import v2

from mobilenet_exp.config.schema import DataConfig, ImagesConfig
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data.preprocessing import Preprocessing

# pixels of one step of a progressive side: the total stride of all networks
SIDE_STEP = 32
# timm's notation: magnitude, layers, probability, spread, maximum, whether it only increases
RAND_AUGMENT = re.compile(r"rand(-(m|n|p|mstd|mmax)\d+(\.\d+)?|-inc[01])+")


def train_transform(data: DataConfig, side: int | None = None) -> v2.Compose:
    """Return the augmentation that `data` describes, then normalisation.

    In this order: `augment`, `auto_augment`, normalisation, `random_erase`. `side` in
    pixels replaces `train_resolution`, and that `resolution`.
    """
    side = side or data.train_resolution or data.resolution
    steps = [*_geometry(data, side), *_auto_augment(data), *_normalize(data)]
    if data.random_erase:
        erase = RandomErasing(data.random_erase, mode=data.erase_mode, device="cpu")
        steps.append(erase)
    return v2.Compose(steps)


def _geometry(data: DataConfig, side: int) -> list:
    crop = v2.RandomResizedCrop(side, scale=(data.min_crop_area, 1.0))
    augmentations = {
        # torchvision's defaults: 8-100 % of the area, aspect 3:4 to 4:3
        "random_resized_crop": [crop, v2.RandomHorizontalFlip()],
        # slim's inception preprocessing: the same crop, with distorted colours
        "inception": [crop, v2.RandomHorizontalFlip(), v2.ColorJitter(32 / 255, 0.5, 0.5, 0.2)],
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
        problem = f"not known; allowed: {', '.join(augmentations)}"
        raise InputError("data.augment", data.augment, problem)
    return augmentations[data.augment]


def _auto_augment(data: DataConfig) -> list:
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
        policy = rand_augment_transform(name, {"img_mean": colour})
    except (ValueError, AssertionError, KeyError) as error:
        known = "imagenet, cifar10, ta_wide, or RandAugment in timm's notation, as rand-m9-mstd0.5"
        raise InputError("data.auto_augment", name, f"not understood; allowed: {known}") from error
    # timm's operations are PIL's
    return [v2.Lambda(_as_pil), policy]


def _as_pil(image: object) -> object:
    return v2.functional.to_pil_image(image) if isinstance(image, torch.Tensor) else image


def eval_transform(data: ImagesConfig | Preprocessing) -> v2.Compose:
    """Resize the shorter side to resolution / crop_pct, crop the centre, normalise.

    The resized side is cut to whole pixels, as timm does.
    """
    side = data.resolution
    # 224 / (224 / 232) must stay 232
    resized = math.floor(side / data.crop_pct + 1e-6)
    interpolation = v2.InterpolationMode(data.interpolation)
    steps = [v2.Resize(resized, interpolation), v2.CenterCrop(side)]
    return v2.Compose(steps + _normalize(data))


def _normalize(data: ImagesConfig | Preprocessing) -> list:
    return [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(data.mean), list(data.std)),
    ]


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
