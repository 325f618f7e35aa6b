"""Processes that share one job, as `torchrun` starts them. Knows no config and no loop."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """This process's place among `size`; rank 0 alone prints and writes."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return every process's `value`, by rank, in every process."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values


def num_launched() -> int:
    """Return how many processes torchrun started for this job; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ else 1


@contextmanager
def joined(device: torch.device) -> Iterator[Team]:
    """Join the processes that torchrun started; alone without it.

    On CUDA each process takes the GPU of its local rank, and NCCL; else Gloo.
    """
    size = num_launched()
    if size == 1:
        yield Team()
        return
    team = Team(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", 0)))
    if device.type == "cuda":
        torch.cuda.set_device(team.local_rank)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield team
    finally:
        dist.destroy_process_group()
