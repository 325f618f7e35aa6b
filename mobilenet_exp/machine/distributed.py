"""Processes that share one job, whoever started them. Knows no config and no loop."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from mobilenet_exp.core.errors import (
    InputError,
    LostPeerError,
    RunError,
    known_to_all,
)
from mobilenet_exp.machine.launched import Place, cores_shared_by, place
from mobilenet_exp.machine.preemption import ASKING, HANG_UP, Preempted, ignores_hang_up

T = TypeVar("T")
# how long processes wait for each other at the start
JOIN_WITHIN = timedelta(minutes=10)
# what torch says when another process has ended
PEER_IS_LOST = (
    "onnection closed", "onnection reset", "onnection refused", "imed out", "Broken pipe",
    "ncclRemoteError", "communicator was aborted",
)  # fmt: skip

# groups that this process has left, kept until it ends: whoever lets go of a Gloo group waits for
# its threads, and holds Python's lock, for which one of them may wait to let go of a last tensor
_LEFT: list[Any] = []


@dataclass(frozen=True)
class Team:
    """This process's place among `size`; rank 0 alone prints and writes."""

    rank: int = 0
    size: int = 1
    # among how many processes this one's cores are shared
    sharing: int = 1
    # Gloo, so that what is agreed on the CPU does not wait for a GPU
    group: Any = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return every process's `value`, by rank, in every process."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def together(self, action: Callable[[], T]) -> T:
        """Run `action` in every process; what one of them raises for a person, all raise."""
        result: Any = None
        refusal: InputError | RunError | None = None
        try:
            result = action()
        except (InputError, RunError) as error:
            refusal = error
        if self.any(refusal is not None)[0]:
            shared = next(each for each in self.gather(refusal) if each is not None)
            raise known_to_all(shared)
        return result

    @contextmanager
    def entered(self, context: AbstractContextManager[T]) -> Iterator[T]:
        """Enter a context in every process; what one raises while it enters, all raise."""
        with contextlib.ExitStack() as stack:
            yield self.together(lambda: stack.enter_context(context))

    def share(self, action: Callable[[], T]) -> T:
        """Run `action` in the first process alone; all return its result, or raise its error."""
        result: Any = self.together(action if self.is_first else _nothing)
        if self.size == 1:
            return result
        values = [result]
        dist.broadcast_object_list(values, 0, group=self.group)
        return values[0]

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is set in any process."""
        if self.size == 1:
            return list(flags)
        answers = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(answers, dist.ReduceOp.MAX, group=self.group)
        return answers.bool().tolist()

    def any_later(self, *flags: bool) -> Callable[[], list[bool]]:
        """Ask what `any` asks, and go on; what is returned waits for the answer."""
        answers = torch.tensor(flags, dtype=torch.int32)
        if self.size == 1:
            return answers.bool().tolist
        work = dist.all_reduce(answers, dist.ReduceOp.MAX, group=self.group, async_op=True)

        def answer() -> list[bool]:
            work.wait()
            return answers.bool().tolist()

        return answer

    def check_alike(self, key: str, value: Any, found: str) -> None:
        """Raise InputError in all processes unless `found` is the same in each.

        `found` says what a process is about to work on; it opens with words for a person.
        """
        every = self.gather(found)
        if len(set(every)) > 1:
            rank = next(rank for rank, each in enumerate(every) if each != every[0])
            words = [each.partition(";")[0] for each in (every[0], every[rank])]
            problem = f"process 0 has {words[0]}, process {rank} {words[1]}"
            if words[0] == words[1]:
                problem = f"processes 0 and {rank} have {words[0]}, but not the same ones"
            raise known_to_all(InputError(key, value, f"{problem}; all must have the same"))

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's BatchNorm statistics."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def average_buffers(self, model: nn.Module) -> None:
        """Give every process the average of all processes' BatchNorm statistics."""
        buffers = [each for each in model.buffers() if each.is_floating_point()]
        if self.size > 1 and buffers:
            together = torch.cat([each.flatten() for each in buffers])
            dist.all_reduce(together)
            together /= self.size
            parts = together.split([each.numel() for each in buffers])
            for buffer, part in zip(buffers, parts, strict=True):
                buffer.copy_(part.view(buffer.shape))


def _nothing() -> None:
    """What the other processes do while the first one acts."""


def own_gpu(place: Place, num_gpus: int, *, sees_one: bool) -> int:
    """Return the number of the GPU that a process takes, among those it can see.

    `sees_one`: the launcher shows each process a GPU of its own, as Slurm does with
    --gpus-per-task. Raises InputError if there are fewer GPUs than processes.
    """
    if place.local_size <= num_gpus:
        return place.local_rank
    if num_gpus == 1 and sees_one:
        return 0
    problem = f"this machine has {num_gpus} GPUs; each process needs one"
    raise InputError("run.devices", place.local_size, problem)


@contextmanager
def said_by_each() -> Iterator[None]:
    """Let each process say itself what fails before it has joined the others."""
    try:
        yield
    except (InputError, RunError) as error:
        error.is_own = True
        raise


@contextmanager
def joined(device: torch.device) -> Iterator[Team]:
    """Join the processes that were started for this job; alone if it is the only one.

    On CUDA each process takes a GPU of its own, and NCCL; else Gloo. Raises RunError if
    not all of them come, and LostPeerError, in place of what torch raises, if one is lost.
    """
    here = place()
    if here.size == 1:
        yield Team()
        return
    group = None
    try:
        if device.type == "cuda":
            # the same in each process of a machine: none waits for another
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
            sees_one = bool(visible) and "," not in visible
            torch.cuda.set_device(own_gpu(here, torch.cuda.device_count(), sees_one=sees_one))
        _meet(device, here)
        if device.type == "cuda":
            group = dist.new_group(backend="gloo")
        yield Team(here.rank, here.size, cores_shared_by(), group)
    except Preempted:
        # all leave together, when the first one has closed what it keeps
        with contextlib.suppress(RuntimeError):
            dist.barrier(group)
        raise
    except Exception as error:
        found = _as_lost_peer(error)
        # what the others do not know, this process says itself
        vars(found)["is_own"] = not getattr(found, "is_known_to_all", False)
        if found is error:
            raise
        raise found from error
    finally:
        if dist.is_initialized():
            _LEFT.append((dist.group.WORLD, group))
            dist.destroy_process_group()


def _meet(device: torch.device, here: Place) -> None:
    """Wait for all processes of the job, JOIN_WITHIN at most."""
    try:
        with _ended_by_signals():
            store, rank, size = next(dist.rendezvous("env://", timeout=JOIN_WITHIN))
        # processes that are started anew must not find the addresses of those that died
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
        # nor those of a group that was left
        store = dist.PrefixStore(f"start-{start}-{len(_LEFT)}", store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        advice = "is every process started, and MASTER_ADDR reachable from each machine?"
        missing = RunError(
            f"process {here.rank} did not meet all {here.size} at {where}: {reason}; {advice}"
        )
        raise missing from error


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end this process at once while it waits; there is nothing to save."""
    is_main = threading.current_thread() is threading.main_thread()
    heard = [each for each in ASKING if each != HANG_UP or not ignores_hang_up()]
    kept = {each: signal.signal(each, signal.SIG_DFL) for each in (heard if is_main else ())}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _as_lost_peer(error: Exception) -> Exception:
    """Return a LostPeerError for what torch raises when another process is gone."""
    is_lost = isinstance(error, RuntimeError) and not isinstance(error, RunError)
    if not is_lost or not any(sign in str(error) for sign in PEER_IS_LOST):
        return error
    reason = str(error).splitlines()[0][:100]
    words = f"another process of this run has ended or does not answer ({reason}); see its output"
    return LostPeerError(f"{words}; the same command resumes from the last checkpoint")
