"""A pool of threads that read images, with a limit on how long one image may take."""

import heapq
import itertools
import os
import threading
import weakref
from collections.abc import Callable

import torch

from mobilenet_exp.core.errors import RunError
from mobilenet_exp.data.reading import Places, begin_reading, new_places, take_place
from mobilenet_exp.data.views import View, name_of

# seconds between two looks at threads that a batch is waited for from
LOOK_EVERY = 1.0
# what is read first: evaluation, while the next epoch's images can wait
EVALUATION, TRAINING = 0, 1


class Threads:
    """Threads that read images, for all feeds of a run; none are started before they are needed.

    `limit` is how many seconds one image may take; None: any.
    """

    def __init__(self, count: int, limit: float | None = None) -> None:
        self.count, self.limit = count, limit
        self.places = new_places(count)
        self._tasks = _Tasks()
        self._process: int | None = None

    def submit(self, task: Callable[[], None], priority: int) -> None:
        """Let a thread do a task; without threads, do it at once."""
        if not self.count:
            task()
            return
        if self._process != os.getpid():
            # threads do not outlive a fork
            self._process, self._tasks = os.getpid(), _Tasks()
            self._start()
        self._tasks.put(task, priority)

    def wait(self, done: threading.Event, view: View) -> None:
        """Wait for a batch. Raises RunError naming an image that takes longer than the limit."""
        image, looks = -1, 0
        while not done.wait(LOOK_EVERY):
            before, image = image, self.places.slowest()[0]
            # looks are counted, not seconds: time for which this process was paused is none
            looks = looks + 1 if image == before else 0
            if image >= 0 and self.limit is not None and looks * LOOK_EVERY > self.limit:
                raise too_slow(self.places, view)

    def _start(self) -> None:
        started = threading.Barrier(self.count + 1)
        # torch would give each of them as many threads again
        threads = torch.get_num_threads()
        running = [
            threading.Thread(
                target=_serve,
                args=(self._tasks, self.places, number, started),
                name=f"images-{number}",
                daemon=True,
            )
            for number in range(self.count)
        ]
        for thread in running:
            thread.start()
        started.wait()
        torch.set_num_threads(threads)
        weakref.finalize(self, _end, self._tasks, running)


def too_slow(places: Places, view: View) -> RunError:
    """Return what is said of the image that has been read longest."""
    index, seconds, images = places.slowest()
    if index < 0:
        return RunError("a loading process does not answer; run.loader=threads does without any")
    what = name_of(images or view.images, index)
    problem = f"{what} has been read for {seconds:.0f} s and is not done"
    advice = "repair or remove the file, or allow more time with run.image_timeout"
    return RunError(f"{problem}; {advice}")


class _Tasks:
    """A queue of tasks, those of lowest priority number first."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Callable]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self.is_over = False

    def put(self, task: Callable[[], None], priority: int) -> None:
        with self._changed:
            heapq.heappush(self._heap, (priority, next(self._numbers), task))
            self._changed.notify()

    def take(self) -> Callable[[], None] | None:
        """Return the next task, or None when there will be no more."""
        with self._changed:
            while not self._heap and not self.is_over:
                self._changed.wait()
            return None if self.is_over else heapq.heappop(self._heap)[2]

    def end(self) -> None:
        with self._changed:
            self.is_over = True
            self._changed.notify_all()


def _serve(tasks: _Tasks, places: Places, number: int, started: threading.Barrier) -> None:
    take_place(places, number)
    torch.set_num_threads(1)
    started.wait()
    while task := tasks.take():
        task()
        begin_reading(-1)


def _end(tasks: _Tasks, running: list[threading.Thread]) -> None:
    """End threads after the few images they are at; one that hangs is left behind."""
    tasks.end()
    for thread in running:
        if thread is not threading.current_thread():
            thread.join(timeout=1.0)
