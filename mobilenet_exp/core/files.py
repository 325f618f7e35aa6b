"""Small files written whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mobilenet_exp.core.errors import InputError, RunError


def write_file(path: Path, content: str | Callable[[Path], Any]) -> None:
    """Write a small file whole or not at all: a text, or what `content(path)` saves there.

    Raises RunError if that cannot be done.
    """
    partial = path.with_name(path.name + ".tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            partial.write_text(content, encoding="utf-8")
        else:
            content(partial)
        os.replace(partial, path)


def check_folder(folder: Path, key: str, value: object) -> None:
    """Raise InputError, under `key`, unless `folder` can be created and written to.

    The folders and the file of this check are removed again.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise InputError(key, value, f"{folder} cannot be written: {error.strerror}") from error
    finally:
        # unless another process has put something there
        with contextlib.suppress(OSError):
            for each in made:
                each.rmdir()


def from_here(path: Path) -> Path:
    """Return a path relative to the current folder, if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a full disk raises into one line."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} could not be written: {error.strerror}") from error
