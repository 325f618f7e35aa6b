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

    `images` is what each reads, -1 for nothing; `since` when it began, by the machine's
    monotonic clock.
    """

    images: Any
    since: Any

    def slowest(self) -> tuple[int, float]:
        """Return the image that has been read longest, and for how many seconds; or -1."""
        now = time.monotonic()
        at = [
            (now - since, image)
            for image, since in zip(self.images, self.since, strict=True)
            if image >= 0
        ]
        seconds, image = max(at, default=(0.0, -1))
        return image, seconds


def new_places(readers: int) -> Places:
    """Return places for so many readers, threads or processes."""
    images = multiprocessing.RawArray("q", [-1] * readers)
    return Places(images, multiprocessing.RawArray("d", readers))


def take_place(places: Places, number: int) -> None:
    """Let this thread note what it reads as reader `number`."""
    _own.place = places, number


def begin_reading(index: int) -> None:
    """Note that image number `index` is being read from now on; -1: none."""
    if place := getattr(_own, "place", None):
        places, number = place
        places.since[number] = time.monotonic()
        places.images[number] = index
