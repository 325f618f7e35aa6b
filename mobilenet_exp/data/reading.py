"""Which image a thread or loading process is at, and since when. Knows no image.

So the image that one dies of, or hangs at, can be named.
"""

import multiprocessing
import threading
import time
from typing import Any, NamedTuple

# this thread's places and its number among them
_own = threading.local()


class Places(NamedTuple):
    """Memory that readers share with their owner, a number each.

    `images` is the number of the image that each reads, -1 for none; `since` when it began,
    by the machine's monotonic clock. `sets` are the data sets that threads read it of; a
    loading process reads of one alone.
    """

    images: Any
    since: Any
    sets: list[Any]

    def slowest(self) -> tuple[int, float, Any]:
        """Return the image that has been read longest, or -1, for how long, and its set."""
        now = time.monotonic()
        at = [
            (now - self.since[number], image, number)
            for number, image in enumerate(self.images)
            if image >= 0
        ]
        if not at:
            return -1, 0.0, None
        seconds, image, number = max(at)
        return image, seconds, self.sets[number]


def new_places(readers: int) -> Places:
    """Return places for so many readers, threads or processes."""
    images = multiprocessing.RawArray("q", [-1] * readers)
    return Places(images, multiprocessing.RawArray("d", readers), [None] * readers)


def take_place(places: Places, number: int) -> None:
    """Let this thread note what it reads as reader `number`."""
    _own.place = places, number


def begin_reading(index: int, images: Any = None) -> None:
    """Note that image number `index` of a set is being read from now on; -1: none."""
    if place := getattr(_own, "place", None):
        places, number = place
        places.sets[number] = images
        places.since[number] = time.monotonic()
        places.images[number] = index
