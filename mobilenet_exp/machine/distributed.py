"""Processes of one job, by any launcher: `joined` gives each its `World`.

One rule: a rank that fails says why and ends; the launcher ends the others.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from mobilenet_exp.core.errors import InputError, LostPeerError, RunError, first_line
from mobilenet_exp.machine.launch_env import Rank, ranks_on_machine, this_rank
from mobilenet_exp.machine.preemption import STOP_SIGNALS, Preempted

T = TypeVar("T")
# how long ranks wait for each other at the start
JOIN_WITHIN = timedelta(minutes=10)
# what torch says when another rank has ended
PEER_IS_LOST = (
    "onnection closed", "onnection reset", "onnection refused", "imed out", "Broken pipe",
    "ncclRemoteError", "communicator was aborted",
)  # fmt: skip

# Keep groups alive until exit: freeing a Gloo group joins its threads while holding the GIL,
# for which one of them may wait.
_LEFT: list[Any] = []


@dataclass(frozen=True)
class World:
    """This process's rank among `size`; the main one, rank 0, alone prints and writes."""

    rank: int = 0
    size: int = 1
    # ranks that share this one's cores
    ranks_on_machine: int = 1
    # Gloo, so that what is agreed on the CPU does not wait for a GPU
    group: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return every rank's `value`, by rank, in every rank."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def on_main(self, action: Callable[[], T]) -> T:
        """Run `action` in the main rank alone, and return its result in all."""
        if self.size == 1:
            return action()
        values: list[Any] = [action() if self.is_main else None]
        dist.broadcast_object_list(values, 0, group=self.group)
        return values[0]

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is set in any rank."""
        if self.size == 1:
            return list(flags)
        answers = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(answers, dist.ReduceOp.MAX, group=self.group)
        return answers.bool().tolist()

    def check_same(self, key: str, value: Any, task: str) -> None:
        """Raise InputError unless `task` is the same in each rank.

        `task` says what a rank is about to work on; it opens with what a person should read.
        """
        every = self.gather(task)
        if len(set(every)) > 1:
            rank = next(rank for rank, each in enumerate(every) if each != every[0])
            counts = [each.partition(";")[0] for each in (every[0], every[rank])]
            problem = f"process 0 has {counts[0]}, process {rank} {counts[1]}"
            if counts[0] == counts[1]:
                problem = f"processes 0 and {rank} have {counts[0]}, but not the same ones"
            raise InputError(key, value, f"{problem}; all must have the same")

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give every rank the main one's BatchNorm statistics."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def average_buffers(self, model: nn.Module) -> None:
        """Give every rank the average of all ranks' BatchNorm statistics."""
        buffers = [each for each in model.buffers() if each.is_floating_point()]
        if self.size > 1 and buffers:
            values = torch.cat([each.flatten() for each in buffers])
            dist.all_reduce(values)
            values /= self.size
            parts = values.split([each.numel() for each in buffers])
            for buffer, part in zip(buffers, parts, strict=True):
                buffer.copy_(part.view(buffer.shape))


def own_gpu(rank: Rank, num_gpus: int, *, sees_one: bool) -> int:
    """Return the number of the GPU that a rank takes, among those it can see.

    `sees_one`: the launcher shows each rank a GPU of its own, as Slurm does with
    --gpus-per-task. Raises InputError if there are fewer GPUs than ranks.
    """
    if rank.local_size <= num_gpus:
        return rank.local_rank
    if num_gpus == 1 and sees_one:
        return 0
    problem = f"this machine has {num_gpus} GPUs; each process needs one"
    raise InputError("run.devices", rank.local_size, problem)


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the ranks that were started for this job; alone if it is the only one.

    On CUDA each rank takes a GPU of its own, and NCCL; else Gloo. Raises RunError if
    not all of them come, and LostPeerError, in place of what torch raises, if one is lost.
    """
    here = this_rank()
    if here.size == 1:
        yield World()
        return
    group = None
    if device.type == "cuda":
        # the same in each rank of a machine: none waits for another
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        sees_one = bool(visible) and "," not in visible
        torch.cuda.set_device(own_gpu(here, torch.cuda.device_count(), sees_one=sees_one))
    try:
        _meet(device, here)
        if device.type == "cuda":
            group = dist.new_group(backend="gloo")
        yield World(here.rank, here.size, ranks_on_machine(), group)
    except Preempted:
        # all leave together, when the main one has closed what it keeps
        with contextlib.suppress(RuntimeError):
            dist.barrier(group)
        _leave(group)
        raise
    except RuntimeError as error:
        if isinstance(error, RunError) or not any(sign in str(error) for sign in PEER_IS_LOST):
            raise
        reason = first_line(error, 100)
        problem = f"another process of this run has ended or does not answer ({reason})"
        advice = "see its output; the same command resumes from the last checkpoint"
        raise LostPeerError(f"{problem}; {advice}") from error
    # one that failed keeps its connections until it ends: the others notice no sooner than it has
    # said why
    _leave(group)


def _leave(group: Any) -> None:
    _LEFT.append((dist.group.WORLD, group))
    dist.destroy_process_group()


def _meet(device: torch.device, here: Rank) -> None:
    """Wait for all ranks of the job, JOIN_WITHIN at most."""
    try:
        with _ended_by_signals():
            store, rank, size = next(dist.rendezvous("env://", timeout=JOIN_WITHIN))
        # ranks that are started anew must not find the addresses of those that died
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
        # nor those of a group that was left
        store = dist.PrefixStore(f"start-{start}-{len(_LEFT)}", store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = first_line(error)
        advice = "is every process started, and MASTER_ADDR reachable from each machine?"
        missing = RunError(
            f"process {here.rank} did not meet all {here.size} at {where}: {reason}; {advice}"
        )
        raise missing from error


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end this process at once while it waits; there is nothing to save."""
    is_main = threading.current_thread() is threading.main_thread()
    signals = STOP_SIGNALS if is_main else ()
    kept = {each: signal.signal(each, signal.SIG_DFL) for each in signals}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
