"""The random numbers of one image, which follow from its seed alone. Knows no image.

Each image has numbers of its own, so that threads do not disturb each other. The same seed
gives what torchvision's and timm's transforms would draw from the global generators after
these had been seeded with it. Torch's numbers are drawn here without torch: its calls give
up Python's lock, and threads that call it in turns wait for each other.
"""

import math
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import torch

from mobilenet_exp.datasets.codec import Box

# torchvision's RandomResizedCrop: aspect ratios, and tries before it takes the middle
ASPECTS = (3 / 4, 4 / 3)
_LOG_ASPECTS = (math.log(ASPECTS[0]), math.log(ASPECTS[1]))
CROP_TRIES = 10
# timm's RandomErasing: shares of the area, aspect ratios, tries
ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECTS = (0.3, 1 / 0.3)
ERASE_TRIES = 10
# numbers that are drawn at once; few images need more
NUMBERS = 32

_own = threading.local()


class Erasure(NamedTuple):
    """A rectangle of the network's input and what fills it; None: zeros, which is the mean."""

    box: Box
    noise: np.ndarray | None


class Draws:
    """What is drawn for one image, in the order in which it is asked for."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._numbers = _numbers(seed, NUMBERS)
        self._used = 0

    def _next(self) -> int:
        if self._used == len(self._numbers):
            self._numbers = _numbers(self.seed, 2 * self._used)
        self._used += 1
        return self._numbers[self._used - 1]

    @cached_property
    def _torch(self) -> torch.Generator:
        """Return torch's generator after what was drawn; from here on it alone is used."""
        generator = torch.Generator().manual_seed(self.seed)
        torch.empty(self._used).uniform_(generator=generator)
        return generator

    @cached_property
    def _python(self) -> random.Random:
        return random.Random(self.seed)

    def uniform(self, low: float, high: float) -> float:
        """Return a float32 number from `low` to `high`."""
        first, span = _span(low, high)
        share = (self._next() & 0xFFFFFF) / 0x1000000
        # rounded once, as a fused multiply-add does
        return float(np.float32(share * span + first))

    def below(self, end: int) -> int:
        """Return a whole number from 0 to `end` - 1."""
        return self._next() % end

    def chance(self, probability: float) -> bool:
        """Return whether something of this probability happens."""
        return (self._next() & 0xFFFFFF) / 0x1000000 < probability

    def order(self, count: int) -> list[int]:
        """Return the numbers below `count` in any order."""
        found = list(range(count))
        for place in range(count - 1):
            other = place + self.below(count - place)
            found[place], found[other] = found[other], found[place]
        return found

    def crop(self, height: int, width: int, min_area: float) -> Box:
        """Return the part of an image that RandomResizedCrop shows.

        Its area is `min_area` to 1 of the image's, its aspect ratio in ASPECTS; where none
        fits, it is the largest middle part of an allowed aspect ratio.
        """
        for _ in range(CROP_TRIES):
            area = height * width * self.uniform(min_area, 1.0)
            aspect = float(np.exp(np.float32(self.uniform(*_LOG_ASPECTS))))
            wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < wide <= width and 0 < high <= height:
                return Box(self.below(height - high + 1), self.below(width - wide + 1), high, wide)
        high, wide = height, width
        if width / height < ASPECTS[0]:
            high = round(width / ASPECTS[0])
        elif width / height > ASPECTS[1]:
            wide = round(height * ASPECTS[1])
        return Box((height - high) // 2, (width - wide) // 2, high, wide)

    def erasures(self, side: int, probability: float, *, noise: bool) -> tuple[Erasure, ...]:
        """Return what RandomErasing erases of an input of `side` pixels, with zeros or noise."""
        draw = self._python
        if probability <= 0 or draw.random() > probability:
            return ()
        logs = tuple(map(math.log, ERASED_ASPECTS))
        for _ in range(ERASE_TRIES):
            area = draw.uniform(*ERASED_AREA) * side * side
            aspect = math.exp(draw.uniform(*logs))
            high, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if wide < side and high < side:
                box = Box(draw.randint(0, side - high), draw.randint(0, side - wide), high, wide)
                return (Erasure(box, self._noise(3, high, wide) if noise else None),)
        return ()

    def _noise(self, *shape: int) -> np.ndarray:
        return torch.empty(shape).normal_(generator=self._torch).numpy()

    @contextmanager
    def as_global(self) -> Iterator[None]:
        """Let transforms draw from the global generators as if from these; not in threads."""
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()
        torch.default_generator.set_state(self._torch.get_state())
        random.setstate(self._python.getstate())
        np.random.seed(self.seed % 2**32)
        try:
            yield
        finally:
            self._torch.set_state(torch.get_rng_state())
            self._python.setstate(random.getstate())
            torch.set_rng_state(states[0])
            random.setstate(states[1])
            np.random.set_state(states[2])


@cache
def _span(low: float, high: float) -> tuple[float, float]:
    """Return where a range of float32 numbers begins, and its length."""
    first = np.float32(low)
    return float(first), float(np.float32(np.float32(high) - first))


def _numbers(seed: int, count: int) -> list[int]:
    """Return the first numbers of 32 bits that torch's generator gives after this seed."""
    if not hasattr(_own, "bits"):
        # making one takes longer than all else here
        _own.bits = np.random.MT19937()
        _own.state = np.random.RandomState(_own.bits)
    _own.state.seed(seed & 0xFFFFFFFF)
    return _own.bits.random_raw(count).tolist()
