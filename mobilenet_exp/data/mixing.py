"""Mixup and cutmix of a batch, by timm, seeded by the update. Knows no loader."""

import numpy as np
from timm.data import Mixup
from torch import Tensor

from mobilenet_exp.config.schema import DataConfig


class Mixing:
    """Mixes the images of a batch in pairs, the first with the last, and their labels.

    Mixup adds two images in shares, cutmix puts a rectangle of one into the other; both
    draw for each update from its number and the seed.
    """

    def __init__(self, data: DataConfig, num_classes: int, seed: int) -> None:
        self.seed = seed
        self.mixup = Mixup(
            mixup_alpha=data.mixup,
            cutmix_alpha=data.cutmix,
            prob=data.mix_prob,
            switch_prob=data.cutmix_share,
            # the loss smooths
            label_smoothing=0.0,
            num_classes=num_classes,
        )

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return mixed images (N, 3, H, W) and targets (N, num_classes); N is even.

        `images` are changed in place.
        """
        state = np.random.get_state()
        np.random.seed([self.seed, step])
        try:
            return self.mixup(images, labels)
        finally:
            np.random.set_state(state)


def build_mixing(data: DataConfig, num_classes: int, seed: int) -> Mixing | None:
    """Return what mixes the training batches, or None where neither is asked for."""
    return Mixing(data, num_classes, seed) if mixes(data) else None


def mixes(data: DataConfig) -> bool:
    """Return whether training batches are mixed."""
    return data.mixup > 0 or data.cutmix > 0
