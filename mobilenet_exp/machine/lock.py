"""A run's folder, locked by one process at a time."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mobilenet_exp.core.errors import InputError

# seconds to wait for a lock: as long as it takes somebody to see whether it is held
MOMENT = 0.2


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
    lock = FileLock(folder / ".lock", timeout=MOMENT)
    try:
        lock.acquire()
    except Timeout as error:
        problem = f"another process is running {folder.name} there; wait for it or stop it"
        raise InputError("run.root", folder.parent, problem) from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or "locks are not supported"
        problem = f"its file system cannot lock files ({reason}); choose a run.root on another one"
        problem += ", or train with run.lock=false if no other job writes there"
        raise InputError("run.root", folder.parent, problem) from error
    try:
        yield
    finally:
        lock.release()
        # what was made and holds nothing, the innermost first
        with contextlib.suppress(OSError):
            for path in made:
                if path == made[0] and [entry.name for entry in path.iterdir()] == [".lock"]:
                    (path / ".lock").unlink()
                path.rmdir()


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the folder, without changing anything in it."""
    path = folder / ".lock"
    # not Path.exists, which raises where a folder may not be looked into
    if not os.path.exists(path):
        return False
    try:
        import fcntl
    except ImportError:
        return _cannot_be_taken(path)
    try:
        with path.open("rb") as file:
            # given back as the file is closed
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # not ours to read, or no locks there: nobody can hold it
        return False
    return False


def _cannot_be_taken(path: Path) -> bool:
    """Return whether the lock is held, where only taking it tells (Windows)."""
    try:
        FileLock(path, timeout=0).acquire().lock.release()
    except Timeout:
        return True
    except OSError:
        return False
    return False
