"""Images that cost nothing to read."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

# different images; the others are these again
DIFFERENT = 64


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
