"""Which image comes when, with which seed.

Everything follows from (seed, epoch): a run that is resumed anywhere within an epoch
continues with exactly the batches it would have had, in any number of processes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from mobilenet_exp.core.errors import InputError


class Key(NamedTuple):
    """One training image: its number in the set, its augmentation's seed, its side in pixels."""

    image: int
    seed: int
    side: int


class BatchSampler:
    """The training batches of one process, as lists of keys.

    An update takes `batch_size` images over all processes, cut into `accumulate` parts
    per process. From a smaller set it takes as many as divide evenly. Images that do not
    fill a last batch are left out. Raises InputError if the batch cannot be cut evenly,
    or, with `pairs`, into parts of even size.

    A part takes images from both ends of the batch towards its middle: mixup joins image
    i with image -1 - i, and so joins the same two however the batch is cut.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        side_at: Callable[[int], int],
        repeats: int = 1,
        rank: int = 0,
        processes: int = 1,
        accumulate: int = 1,
        pairs: bool = False,
    ) -> None:
        self.size, self.seed, self.side_at, self.repeats = size, seed, side_at, repeats
        self.rank, self.accumulate = rank, accumulate
        parts = processes * accumulate
        unit = parts * (2 if pairs else 1)
        self.batch_size = batch_size if size >= batch_size else size // unit * unit
        if self.batch_size < unit or batch_size % unit:
            cut = ("processes x accumulate" if processes > 1 else "accumulate") + pairs * " x pairs"
            problem = f"must be divisible by {unit} ({cut}) and not exceed the training set"
            raise InputError("data.batch_size", batch_size, problem)
        # updates of a whole epoch, images of one part
        self.num_updates, self.part_size = size // self.batch_size, self.batch_size // parts
        self.epoch, self.first_update = 1, 0

    def set_position(self, epoch: int, first_update: int = 0) -> None:
        """Begin at an update, counted from 0, of an epoch, counted from 1."""
        self.epoch, self.first_update = epoch, first_update

    def __len__(self) -> int:
        return (self.num_updates - self.first_update) * self.accumulate

    @property
    def position(self) -> tuple[int, int]:
        """Return the epoch and update at which iteration begins."""
        return self.epoch, self.first_update

    def __iter__(self) -> Iterator[list[Key]]:
        # a prime stride keeps the (seed, epoch) pairs apart
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        kind = torch.int32 if self.size < 2**31 else torch.int64
        order = torch.randperm(self.size, generator=generator, dtype=kind)
        seeds = torch.randint(2**62, (self.size,), generator=generator)
        if self.repeats > 1:
            order = order.repeat_interleave(self.repeats)[: self.size]
        side, size = self.side_at(self.epoch), self.part_size
        for update in range(self.first_update, self.num_updates):
            batch = slice(update * self.batch_size, (update + 1) * self.batch_size)
            pairs = zip(order[batch].tolist(), seeds[batch].tolist(), strict=True)
            keys = [Key(*pair, side) for pair in pairs]
            for part in range(self.rank * self.accumulate, (self.rank + 1) * self.accumulate):
                first, half = part * size // 2, size // 2
                end = len(keys) - first
                if size % 2:
                    yield keys[part * size : (part + 1) * size]
                else:
                    yield keys[first : first + half] + keys[end - half : end]


class EvalSampler:
    """The images of an evaluation that one process scores, as lists of their numbers."""

    position = None

    def __init__(self, indices: Sequence[int], batch_size: int) -> None:
        self.indices, self.batch_size = indices, batch_size
        # images of the largest batch
        self.part_size = min(batch_size, len(indices))

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(0, len(self.indices), self.batch_size):
            yield list(self.indices[first : first + self.batch_size])
