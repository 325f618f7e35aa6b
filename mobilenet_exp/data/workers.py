"""The processes that load images: how many, what ends them, what is said when one dies.

Knows no data set.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from functools import cache
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from mobilenet_exp.core.errors import RunError
from mobilenet_exp.data.datasets import ImageSet
from mobilenet_exp.data.views import Unreadable
from mobilenet_exp.machine.preemption import ASKING


def loading_options(images: ImageSet, workers: int | None, pin_memory: bool) -> dict[str, Any]:
    """Return a loader's options for so many loading processes; None: one per core, for files."""
    if workers is None:
        workers = 0 if images.in_memory else _num_cores()
    if workers:
        _end_workers_at_exit()
    return {
        "num_workers": workers,
        "worker_init_fn": _ignore_signals if workers else None,
        "persistent_workers": workers > 0,
        "pin_memory": pin_memory,
        # its own: a loader would draw from the global generator, which dropout follows
        "generator": torch.Generator(),
    }


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


def _ignore_signals(_: int) -> None:
    """Let the training process alone decide what Ctrl-C and a scheduler's signals mean."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)


def _num_cores() -> int:
    # those this process may use, where the system tells: a cluster's job has a share
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# what torch says when a loading process died or could not hand over its batch
WORKER_DIED = (
    "unable to write to file",
    "unable to allocate shared memory",
    "No space left on device",
    "is killed by signal",
    "exited unexpectedly",
)
WORKER_ADVICE = (
    "a loading process died or could not hand over its batch; memory or /dev/shm may be full: "
    "make it larger, or load fewer images at once with run.workers=0 or a lower run.workers"
)


class Loader(DataLoader):
    """A DataLoader that raises a RunError in plain words for an image that cannot be read.

    A loading process hands the reason over as a value: an exception would arrive as the
    text of its traceback.
    """

    def __init__(self, dataset: Dataset, **options: Any) -> None:
        super().__init__(dataset, collate_fn=_collate, **options)

    def __iter__(self) -> Iterator:
        batches = super().__iter__()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if any(sign in str(error) for sign in WORKER_DIED):
                    raise RunError(WORKER_ADVICE) from error
                raise
            if isinstance(batch, Unreadable):
                raise RunError(batch.problem)
            yield batch


def _collate(samples: list) -> Any:
    for sample in samples:
        if isinstance(sample, Unreadable):
            return sample
    return default_collate(samples)
