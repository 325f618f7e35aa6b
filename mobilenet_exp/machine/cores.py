"""How many CPU threads a process computes with, beside other programs."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

# seconds for which other programs are watched
WATCHED = 0.3
STAT = Path("/proc/stat")
# fields of a core's line that count time in which it had nothing to do
IDLE, IO_WAIT = 3, 4


@contextlib.contextmanager
def keeping_threads() -> Iterator[None]:
    """Leave this process's number of CPU threads as it was: the next job chooses its own."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def leave_busy_cores() -> str:
    """Compute with no more threads than there are idle cores; return a line if that is fewer.

    Threads of one sum wait for the last of them: beside two busy programs on two cores, two
    threads trained 8 images/s and one 473. OMP_NUM_THREADS is left as it is.
    """
    most = torch.get_num_threads()
    if most == 1 or os.environ.get("OMP_NUM_THREADS"):
        return ""
    idle = idle_cores()
    threads = most if idle is None else max(1, min(most, round(idle)))
    if threads == most:
        return ""
    torch.set_num_threads(threads)
    return (
        f"{threads} of {most} CPU threads, for other programs use the cores now; "
        f"run.threads={most} takes all"
    )


def idle_cores(seconds: float = WATCHED) -> float | None:
    """Return how many of this process's cores had nothing to do for a while; None: unknown."""
    # what each core has done since the machine's start, in ticks, by kind; now and after a while
    looks: list[dict[int, list[int]]] = []
    try:
        for _ in range(2):
            if looks:
                time.sleep(seconds)
            lines = [line.split() for line in STAT.read_text().splitlines()]
            looks.append(
                {
                    # the last two fields are parts of the first two
                    int(name.removeprefix("cpu")): [int(each) for each in ticks[:8]]
                    for name, *ticks in lines
                    if name.startswith("cpu") and name != "cpu"
                }
            )
        mine = os.sched_getaffinity(0)
    except (OSError, ValueError, AttributeError):
        return None
    before, after = looks
    idle = 0.0
    for core in mine & before.keys() & after.keys():
        spent = [now - then for now, then in zip(after[core], before[core], strict=True)]
        idle += (spent[IDLE] + spent[IO_WAIT]) / max(sum(spent), 1)
    return idle
