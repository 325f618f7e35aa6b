"""A run's folder, locked by one process at a time. Knows nothing of what is in it."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mobilenet_exp.core.errors import InputError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the folder if needed, and keep other processes from running in it.

    The lock belongs to the operating system and is released when the process ends,
    however it ends. A folder that was made for nothing is removed again. Raises InputError
    if another process holds it, if its file system knows no locks, or if the folder cannot
    be created.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot hold the run's folder: {error.strerror}"
        raise InputError("run.root", folder.parent, problem) from error
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        problem = f"another process is running {folder.name} there; wait for it or stop it"
        raise InputError("run.root", folder.parent, problem) from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or "locks are not supported"
        problem = f"its file system cannot lock files ({reason}); choose a run.root on another one"
        raise InputError("run.root", folder.parent, problem) from error
    try:
        yield
    finally:
        lock.release()
        _remove_if_empty(made)


def _remove_if_empty(made: list[Path]) -> None:
    """Remove the folders that were made, the innermost first, if nothing was written there."""
    with contextlib.suppress(OSError):
        for path in made:
            if path == made[0] and [entry.name for entry in path.iterdir()] == [".lock"]:
                (path / ".lock").unlink()
            path.rmdir()
