"""A run's folder, held by one process at a time. Knows nothing of what is in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mobilenet_exp.core.errors import InputError


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make the folder if it is not there, and keep other processes from running in it.

    The lock is the system's: it goes with the process, however that ends. Raises
    InputError if another process holds it or if the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        allowed = f"cannot hold the run's folder: {error.strerror}"
        raise InputError("run.root", folder.parent, allowed) from error
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        allowed = f"another process is running {folder.name} there; wait for it or stop it"
        raise InputError("run.root", folder.parent, allowed) from error
    try:
        yield
    finally:
        lock.release()
