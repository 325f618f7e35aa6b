"""Which image a loading process is at, for the one that it dies of. Knows no image."""

import multiprocessing
from typing import Any

# this process's place in its loader's numbers, and the place's index; None outside of loaders
_place: tuple[Any, int] | None = None


def new_places(workers: int) -> Any:
    """Return memory that loading processes share with their owner: a number each, -1 at first."""
    return multiprocessing.RawArray("q", [-1] * workers)


def take_place(places: Any, worker: int) -> None:
    """Let this loading process note what it reads in `places[worker]`."""
    global _place
    _place = (places, worker)


def begin_reading(index: int) -> None:
    """Note that image number `index` is being read now."""
    if _place:
        places, worker = _place
        places[worker] = index
