"""Mixup and cutmix of a batch, by timm, seeded by the update."""

import numpy as np
from torch import Tensor

from mobilenet_exp.config.schema import DataConfig
from mobilenet_exp.core.errors import InputError


class Mixing:
    """Mixes the images of a batch in pairs, the first with the last, and their labels.

    Mixup blends two images, cutmix puts a rectangle of one into the other; both
    draw for each update from its number and the seed. In the last `mix_off_epochs` nothing is
    mixed. Raises InputError where that leaves nothing to mix.
    """

    def __init__(
        self, data: DataConfig, num_classes: int, seed: int, *, epochs: int, steps_per_epoch: int
    ) -> None:
        if data.mix_off_epochs >= epochs:
            problem = f"leaves no epoch in which anything is mixed: train.epochs={epochs}"
            raise InputError("data.mix_off_epochs", data.mix_off_epochs, problem)
        self.seed, self.end = seed, (epochs - data.mix_off_epochs) * steps_per_epoch
        # timm takes most of a second to import
        from timm.data import Mixup

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

        `images` are changed in place. What is not mixed keeps its labels (N,).
        """
        if step >= self.end:
            return images, labels
        state = np.random.get_state()
        np.random.seed([self.seed, step])
        try:
            return self.mixup(images, labels)
        finally:
            np.random.set_state(state)
