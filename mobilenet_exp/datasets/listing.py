"""Lists of the images in a tree of class folders, cached on disk where they are large.

The list of a large tree is stored in the user's cache folder, with the modification time of
each folder; other processes and later runs memory-map it until a folder changes. `Names` and
`map_arrays` hold millions of entries in little memory, which processes share.
"""

import hashlib
import json
import os
import time
import uuid
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from safetensors.numpy import save

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.text import examples, printable
from mobilenet_exp.datasets.folders import find_classes, image_endings, walk_images

FORMAT = "mobilenet_exp listing 1"
# with fewer images, listing them takes no time
MIN_KEPT = 20_000
# seconds: a folder that was changed just now may change again within the clock's tick
MIN_AGE = 3.0
# safetensors' names of what is kept here
_KINDS = {"U8": np.uint8, "I8": np.int8, "I32": np.int32, "I64": np.int64}


class Names:
    """Names as one buffer of bytes and where each ends; file names of any bytes are kept.

    A list of as many `str` takes five times the memory, and grows in each loading process
    with every name that is read.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """Return these names."""
        text, ends = bytearray(), array("q")
        for name in names:
            text += os.fsencode(name)
            ends.append(len(text))
        return cls(np.frombuffer(text, np.uint8), np.frombuffer(ends, np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = self.ends[index - 1] if index else 0
        return os.fsdecode(self.text[first : self.ends[index]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def chosen(self, indices: Iterable[int]) -> "Names":
        """Return the names of these numbers."""
        return Names.of(self[index] for index in indices)


@dataclass(frozen=True)
class Listing:
    """Image files below a folder, their labels, and the files that are no images."""

    names: Names
    labels: np.ndarray
    classes: list[str]
    others: dict[str, str]


def list_tree(folder: Path) -> Listing:
    """Return the images of class folders, in order. Raises InputError where one has none."""
    classes = find_classes(folder)
    if not classes:
        raise InputError("data.root", folder, "has no class folders of images")
    if not _is_large(folder, classes):
        return _listed(folder, classes, {})
    kept = _kept_at(folder)
    found = _load(kept)
    if found:
        return found
    with ExitStack() as stack:
        wait_for_others(kept, stack)
        # another process may have listed it meanwhile
        return _load(kept) or _list_and_keep(folder, classes, kept)


def _is_large(folder: Path, classes: list[str]) -> bool:
    """Guess from the first class whether a list is worth keeping."""
    try:
        return len(classes) * len(os.listdir(folder / classes[0])) >= MIN_KEPT
    except OSError:
        # listing it says what is wrong
        return False


def _list_and_keep(folder: Path, classes: list[str], kept: Path) -> Listing:
    started, folders = time.time(), {str(folder): os.stat(folder).st_mtime_ns}
    found = _listed(folder, classes, folders)
    newest = max(folders.values()) / 1e9
    if len(found.names) >= MIN_KEPT and started - newest > MIN_AGE:
        _keep(found, folders, kept)
    return found


def _listed(folder: Path, classes: list[str], folders: dict[str, int]) -> Listing:
    """List a tree; `folders` gets the time of each folder's last change before it is read."""
    counts: list[int] = []
    others: dict[Path, str] = {}
    empty: dict[str, str] = {}

    def images() -> Iterator[str]:
        for name in classes:
            found = walk_images(folder / name, folders)
            others.update(found.others)
            if not found.images:
                empty[printable(name)] = next(iter(found.others.values()), "empty")
            counts.append(len(found.images))
            yield from (os.path.relpath(path, folder) for path in found.images)

    names = Names.of(images())
    if empty:
        problem = f"class folders of {folder} without an image: {examples(empty)}"
        raise InputError("data.root", folder, f"{problem}; fill or remove them")
    return Listing(
        names,
        np.repeat(np.arange(len(classes), dtype=np.int32), counts),
        classes,
        {printable(os.path.relpath(path, folder)): why for path, why in others.items()},
    )


def _kept_at(folder: Path) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    real = os.fsencode(os.path.realpath(folder))
    name = f"{hashlib.sha256(real).hexdigest()[:24]}.listing"
    return Path(cache) / "mobilenet_exp" / name


def wait_for_others(kept: Path, stack: ExitStack) -> None:
    """Let one process of a machine write a file while others wait for it."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(FileLock(kept.with_suffix(".lock")))
    except (OSError, NotImplementedError):
        # no such folder can be made, or it cannot be locked: each process lists the tree itself
        return


def _keep(found: Listing, folders: dict[str, int], kept: Path) -> None:
    paths = Names.of(folders)
    arrays = {
        "names": found.names.text,
        "ends": found.names.ends,
        "labels": found.labels,
        "folders": paths.text,
        "folder_ends": paths.ends,
        "changed": np.array(list(folders.values()), np.int64),
    }
    texts = {"classes": found.classes, "others": found.others, "endings": sorted(image_endings())}
    about = {"format": FORMAT, "texts": json.dumps(texts)}
    try:
        save_arrays(kept, arrays, about)
    except OSError:
        # no room for it: it is listed each time
        return


def _load(kept: Path) -> Listing | None:
    """Return the kept list, unless the tree has changed since."""
    try:
        arrays, about = map_arrays(kept)
        texts = json.loads(about["texts"])
        if about["format"] != FORMAT or texts["endings"] != sorted(image_endings()):
            return None
        paths = Names(arrays["folders"], arrays["folder_ends"])
        for path, changed in zip(paths, arrays["changed"].tolist(), strict=True):
            if os.stat(path).st_mtime_ns != changed:
                return None
    except (OSError, ValueError, KeyError):
        return None
    names = Names(arrays["names"], arrays["ends"])
    return Listing(names, arrays["labels"], texts["classes"], texts["others"])


def save_arrays(path: Path, arrays: dict[str, np.ndarray], about: dict[str, str]) -> None:
    """Write arrays and their metadata, whole or not at all."""
    half = part_of(path)
    plain = {key: np.ascontiguousarray(each) for key, each in arrays.items()}
    # as bytes: a file that safetensors makes is for its owner alone
    try:
        half.write_bytes(save(plain, about))
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """Return a temporary name for a file being written, unique among all processes."""
    return path.with_name(f"{path.name}.part-{uuid.uuid4().hex[:12]}")


def map_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return memory-mapped arrays, and the texts about them.

    Raises OSError or ValueError for a file that is not there, damaged, or something else.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
        if not 0 < length <= size - 8:
            raise ValueError("it is not in safetensors' format")
        head = json.loads(file.read(length))
    about = head.pop("__metadata__", {})
    arrays = {}
    for key, entry in head.items():
        first, end = entry["data_offsets"]
        if 8 + length + end > size:
            raise ValueError("it is cut short")
        kind, shape = _KINDS[entry["dtype"]], tuple(entry["shape"])
        if end == first:
            arrays[key] = np.zeros(shape, kind)
        else:
            arrays[key] = np.memmap(path, kind, "r", offset=8 + length + first, shape=shape)
    return arrays, about
