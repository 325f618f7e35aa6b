"""Lists the images of a folder, by extension or file header, and the folders of classes.

Hidden files and folders, as macOS and Jupyter leave them, are neither images nor classes.
"""

import mimetypes
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mobilenet_exp.core.errors import InputError

# formats that Pillow recognises but decodes only with a program or package of their own
STUBS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
HEIC = (".heic", ".heif", ".hif")
NEEDS_HEIC = "HEIC photos need `pip install pillow-heif`"


class Files(NamedTuple):
    """Image files in order, and every other file with the reason why it is no image."""

    images: list[Path]
    others: dict[Path, str]


@cache
def image_endings() -> dict[str, str]:
    """Return the endings of files that Pillow decodes, with Pillow's name of the format."""
    _register_heic()
    endings = Image.registered_extensions()
    return {end: kind for end, kind in endings.items() if kind in Image.OPEN and kind not in STUBS}


def _register_heic() -> None:
    """Let Pillow read HEIC photos where the package for them is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return
    register_heif_opener()


def list_images(folder: Path) -> Files:
    """Divide the files directly in a folder into images and others, sorted by name."""
    files = [entry for entry in _entries(folder) if not _is_dir(entry)]
    return _sorted_out(Path(entry.path) for entry in files)


def walk_images(folder: Path, folders: dict[str, int] | None = None) -> Files:
    """Divide the files of a folder, at any depth, into images and others; follow links once.

    `folders` gets each folder with the time, in ns, at which it was last changed.
    """
    return _sorted_out(_walk(folder, {os.path.realpath(folder)}, folders))


def find_classes(root: Path) -> list[str]:
    """Return the names of the folders in `root`, sorted; a link to `root` itself is no class."""
    own = Path(os.path.realpath(root))
    above = {own, *own.parents}
    return [
        entry.name
        for entry in _entries(root)
        if _is_dir(entry) and not (entry.is_symlink() and Path(os.path.realpath(entry)) in above)
    ]


def is_meant_as_image(path: Path) -> bool:
    """Return whether a file's extension is one of an image format, readable here or not."""
    kind = mimetypes.guess_type(path.name)[0] or ""
    return path.suffix.lower() in HEIC or kind.startswith("image/")


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError("data.root", folder, f"cannot be read: {error.strerror}") from error
    return [entry for entry in entries if entry.name[0] != "." and entry.name != "__MACOSX"]


def _is_dir(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # a link that leads to itself, or where this process may not look
        return False


def _walk(folder: Path, seen: set[str], folders: dict[str, int] | None) -> Iterator[Path]:
    """Yield the files of a folder, then of its folders; `seen` are real paths of folders."""
    if folders is not None:
        folders[str(folder)] = os.stat(folder).st_mtime_ns
    entries = _entries(folder)
    yield from (Path(entry.path) for entry in entries if not _is_dir(entry))
    above = os.path.realpath(folder) + os.sep
    for entry in entries:
        if not _is_dir(entry):
            continue
        real = os.path.realpath(entry.path) if entry.is_symlink() else above + entry.name
        # not a link to a parent folder, or to a folder that was visited already
        if real not in seen and not above.startswith(real + os.sep):
            seen.add(real)
            yield from _walk(Path(entry.path), seen, folders)


def _sorted_out(paths: Iterator[Path]) -> Files:
    files = Files([], {})
    for path in paths:
        if path.suffix.lower() in image_endings() or (path.is_file() and _is_image(path)):
            files.images.append(path)
        else:
            files.others[path] = _reason(path)
    return files


def _is_image(path: Path) -> bool:
    """Return whether Pillow recognises a file by its content."""
    try:
        with Image.open(path) as image:
            return image.format not in STUBS
    except Exception:
        # Pillow's parsers fail on foreign files in any way
        return False


def _reason(path: Path) -> str:
    if path.suffix.lower() in HEIC:
        return NEEDS_HEIC
    if not path.is_file():
        is_link = path.is_symlink() and not path.exists()
        return "a link to a file that is not there" if is_link else "not a regular file"
    return f"Pillow cannot read {path.suffix} files" if is_meant_as_image(path) else "not an image"
