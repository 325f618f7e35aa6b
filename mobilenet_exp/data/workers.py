"""The processes that load images: how many, what ends them, what is said when one dies.

Knows no data set.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from functools import cache, partial
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from mobilenet_exp.core.errors import RunError
from mobilenet_exp.data.datasets import ImageSet
from mobilenet_exp.data.reading import new_places, take_place
from mobilenet_exp.data.views import Odd, Unreadable, name_of
from mobilenet_exp.machine.preemption import ASKING


def num_workers(images: ImageSet, workers: int | None, sharing: int) -> int:
    """Return the loading processes of one training process.

    None: none for data in memory, else this process's share of the cores, at least one;
    `sharing` processes have the same cores.
    """
    if workers is None:
        return 0 if images.in_memory else max(1, _num_cores() // sharing)
    return workers


def num_eval_workers(workers: int) -> int:
    """Return the loading processes of an evaluation during training: a quarter of them."""
    return min(workers, max(1, workers // 4))


@cache
def _end_workers_at_exit() -> None:
    """Kill loading processes when this process ends, however it ends in Python.

    They ignore SIGTERM, by which multiprocessing would end them before it waits for them.
    """
    Finalize(None, _kill_workers, exitpriority=100)


def _kill_workers() -> None:
    if threading.current_thread() is threading.main_thread():
        # torch's handler raises for a loading process that was killed
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _begin_worker(places: Any, worker: int) -> None:
    """Let the training process alone decide what Ctrl-C and a scheduler's signals mean."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    take_place(places, worker)


def _num_cores() -> int:
    # those this process may use, where the system tells: a cluster's job has a share
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    share = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(cores, int(share)) if share.isdecimal() and int(share) else cores


# what torch says when a loading process died or could not hand over its batch
WORKER_DIED = (
    "unable to write to file",
    "unable to allocate shared memory",
    "No space left on device",
    "is killed by signal",
    "exited unexpectedly",
    "Too many open files",
)
WORKER_ADVICE = (
    "memory or /dev/shm may be full: make it larger, or load fewer images at once with "
    "run.workers=0 or a lower run.workers"
)


class Loader(DataLoader):
    """A DataLoader that raises a RunError in plain words for what a person should see.

    That is an image that cannot be read, or a loading process that died; `images` is the
    set that `dataset` shows. A loading process hands the reason over as a value: an
    exception would arrive as the text of its traceback.
    """

    def __init__(
        self, dataset: Dataset, *, images: Dataset, workers: int, pin_memory: bool, **options: Any
    ) -> None:
        if workers:
            _end_workers_at_exit()
        self._images, self._places = images, new_places(workers)
        super().__init__(
            dataset,
            collate_fn=_collate,
            num_workers=workers,
            worker_init_fn=partial(_begin_worker, self._places) if workers else None,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            # its own: a loader would draw from the global generator, which dropout follows
            generator=torch.Generator(),
            **options,
        )

    def __iter__(self) -> Iterator:
        batches: Any = None
        while True:
            try:
                # not its truth: an iterator of torch's has a length
                batches = self._begun() if batches is None else batches
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError) as error:
                if any(sign in str(error) for sign in WORKER_DIED):
                    raise RunError(f"{self._who_died(batches)}; {WORKER_ADVICE}") from error
                raise
            if isinstance(batch, Unreadable):
                raise RunError(batch.problem)
            yield batch

    def _begun(self) -> Iterator:
        batches = super().__iter__()
        if self.num_workers and threading.current_thread() is threading.main_thread():
            # torch's handler raises wherever this process is; a dead one is noticed in `next`
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return batches

    def _who_died(self, batches: Any) -> str:
        """Name the image that a dead loading process was at."""
        processes = getattr(self._iterator if batches is None else batches, "_workers", [])
        dead = [i for i, each in enumerate(processes) if each.exitcode not in (None, 0)]
        at = [self._places[i] for i in dead if self._places[i] >= 0]
        words = "a loading process died or could not hand over its batch"
        return f"{words}, at {name_of(self._images, at[0])}" if at else words


def _collate(samples: list) -> Any:
    """Join samples; what was odd about them is joined, too."""
    for sample in samples:
        if isinstance(sample, Unreadable):
            return sample
    if not isinstance(samples[0][-1], Odd):
        return default_collate(samples)
    left_out: dict[str, str] = {}
    for *_, odd in samples:
        left_out |= odd.left_out
    tensors = default_collate([sample[:-1] for sample in samples])
    return [*tensors, Odd(left_out, sum(odd.num_unturned for *_, odd in samples))]
