"""The processes that load images: how many, what ends them, what is said when one dies.

Knows no data set.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mobilenet_exp.core.errors import RunError
from mobilenet_exp.core.text import plural
from mobilenet_exp.data.feeding import Raw
from mobilenet_exp.data.reading import Places, begin_reading, new_places, take_place
from mobilenet_exp.data.threads import too_slow
from mobilenet_exp.data.views import Seen, View, name_of
from mobilenet_exp.datasets.builders import ImageSet
from mobilenet_exp.machine.preemption import ASKING

# more threads than this read no faster: each image takes Python's lock many times
# (`python -m benchmarks.data --parts growth`)
USEFUL_THREADS = 4
# seconds more than it asked for after which a process was paused meanwhile
PAUSE = 2.0


def num_workers(images: ImageSet, workers: int | None, sharing: int, device: torch.device) -> int:
    """Return the loading threads or processes of one training process.

    None: none for data in memory, else this process's share of the cores, or half of it
    where they compute, too, but then no more than USEFUL_THREADS; at least one. `sharing`
    processes have the same cores.
    """
    if workers is not None:
        return workers
    if images.in_memory:
        return 0
    if device.type == "cpu":
        # with all cores reading, the network's threads wait for each other: on 2 cores
        # training ran at 66 images/s beside one reader, at 54 beside two
        return max(1, min(USEFUL_THREADS, _num_cores() // (2 * sharing)))
    return max(1, _num_cores() // sharing)


def num_eval_workers(workers: int) -> int:
    """Return the loading processes of an evaluation during training: a quarter of them."""
    return min(workers, max(1, workers // 4))


@cache
def _end_workers_at_exit() -> None:
    """Kill loading processes when this process ends, however it ends in Python.

    They ignore SIGTERM, by which multiprocessing would end them before it waits for them.
    """
    Finalize(None, _kill_workers, exitpriority=100)


def _forget_children() -> None:
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _kill_workers() -> None:
    if threading.current_thread() is threading.main_thread():
        # torch's handler raises for a loading process that was killed
        _forget_children()
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _begin_worker(places: Places, worker: int) -> None:
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
TIMED_OUT = "DataLoader timed out"
WORKER_ADVICE = (
    "memory or /dev/shm may be full: make it larger, or load fewer images at once with "
    "run.workers=0 or a lower run.workers; run.loader=threads needs no /dev/shm"
)


class _Whole(Dataset):
    """A view's images, a batch at a time, for a loading process."""

    def __init__(self, view: View) -> None:
        self.view = view

    def __getitems__(self, keys: list) -> tuple[list, Tensor, list[Seen]]:
        side = self.view.side(keys[0])
        pixels = torch.empty((len(keys), side, side, 3), dtype=torch.uint8)
        outs = pixels.numpy()
        seen = [self.view.read(key, out) for key, out in zip(keys, outs, strict=True)]
        begin_reading(-1)
        return keys, pixels, seen


class ProcessReader:
    """Raw batches of a view, in order, read by processes ahead of who takes them.

    Raises a RunError in plain words for what a person should see: a loading process that
    died, or takes longer than `limit` seconds for a batch.
    """

    def __init__(self, view: View, workers: int, limit: float | None, *, pin_memory: bool) -> None:
        _end_workers_at_exit()
        self.view, self._workers, self._limit = view, workers, limit
        # no cycle: when it is not needed any more, its processes end at once
        self._asked = _Asked()
        self._places = new_places(workers)
        self._passes = 0
        self._loader: DataLoader = DataLoader(
            _Whole(view),
            batch_sampler=self._asked,
            collate_fn=_as_it_is,
            num_workers=workers,
            worker_init_fn=partial(_begin_worker, self._places),
            persistent_workers=True,
            pin_memory=pin_memory,
            timeout=limit or 0,
            # its own: a loader would draw from the global generator, which dropout follows
            generator=torch.Generator(),
        )

    @property
    def workers(self) -> int:
        return self._workers

    @property
    def words(self) -> str:
        """Say who reads."""
        return plural(self._workers, "loading process")

    def __call__(self, batches: Iterable[list]) -> Iterator[Raw]:
        """Begin to read, and return the raw batches; a pass before this one has ended."""
        self._asked.batches = batches
        self._passes += 1
        with self._in_plain_words():
            loaded = self._begun()
        return self._raws(loaded, self._passes)

    def _raws(self, loaded: Iterator, number: int) -> Iterator[Raw]:
        while True:
            if number != self._passes:
                raise RuntimeError("another pass over the images was begun")
            try:
                with self._in_plain_words():
                    keys, pixels, seen = self._next(loaded)
            except StopIteration:
                return
            raw = Raw(self.view, keys, pixels)
            raw.seen = seen
            raw.check()
            yield raw

    @contextmanager
    def _in_plain_words(self) -> Iterator[None]:
        """Raise a RunError for what torch says of processes that died or do not answer."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            if TIMED_OUT in str(error):
                raise too_slow(self._places, self.view) from error
            if any(sign in str(error) for sign in WORKER_DIED):
                raise RunError(f"{self._who_died()}; {WORKER_ADVICE}") from error
            raise

    def _next(self, loaded: Iterator) -> tuple:
        """Wait for a batch, which may take longer than the limit of an image."""
        while True:
            started, limit = time.monotonic(), self._limit or 0
            try:
                return next(loaded)
            except RuntimeError as error:
                index, seconds, _ = self._places.slowest()
                is_at_work = index >= 0 and seconds < limit
                # as by Ctrl-Z: its own time was up at once
                was_paused = time.monotonic() - started > limit + PAUSE
                if TIMED_OUT not in str(error) or not (is_at_work or was_paused):
                    raise

    def _begun(self) -> Iterator:
        loaded = iter(self._loader)
        if threading.current_thread() is threading.main_thread():
            # torch's handler raises wherever this process is; a dead one is noticed in `next`
            _forget_children()
        return loaded

    def _who_died(self) -> str:
        """Name the image that a dead loading process was at."""
        processes = getattr(self._loader._iterator, "_workers", [])
        dead = [i for i, each in enumerate(processes) if each.exitcode not in (None, 0)]
        at = [self._places.images[i] for i in dead if self._places.images[i] >= 0]
        words = "a loading process died or could not hand over its batch"
        return f"{words}, at {name_of(self.view.images, at[0])}" if at else words


class _Asked:
    """What a process reader is asked for now, as its loader's batch sampler."""

    batches: Iterable[list] = ()

    def __iter__(self) -> Iterator[list]:
        return iter(self.batches)


def _as_it_is(batch: Any) -> Any:
    return batch
