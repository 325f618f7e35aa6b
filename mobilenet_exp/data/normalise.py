"""Batches of uint8 pixels to the network's input, on its device."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from mobilenet_exp.data.augment import Erasure

# values that a CPU normalises at once: torch computes so few in one thread; its other threads
# would stay awake for a while after each batch, and take their cores from the workers
AT_ONCE = 32_768


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
