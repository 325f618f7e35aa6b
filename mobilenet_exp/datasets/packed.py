"""Images of packed sets, read one at a time and in any order."""

import io
import zlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.datasets.codec import Box
from mobilenet_exp.datasets.decode import Opened, open_image
from mobilenet_exp.datasets.imagenet import class_ids
from mobilenet_exp.datasets.images import ImageFiles
from mobilenet_exp.datasets.listing import wait_for_others
from mobilenet_exp.datasets.remote import Remote
from mobilenet_exp.datasets.shards import (
    PLAN,
    RAW,
    UNKNOWN,
    Folder,
    Index,
    Place,
    index_path,
    index_shards,
    is_of,
)

# of an array of pixels in numpy's format; it ends in a new line
HEADER_BYTES = 256


@dataclass
class PackedImages(ImageFiles):
    """Images in shards. `verify`: whether each one's checksum is looked at when it is read."""

    index: Index = field(kw_only=True)
    place: Place = field(kw_only=True)
    verify: bool = field(kw_only=True, default=True)

    def read(self, index: int) -> tuple[bytes, str]:
        found = self.index
        shard, size = found.shards[found.shard[index]][0], int(found.size[index])
        data = self.place.read(shard, int(found.offset[index]), size)
        if len(data) != size:
            raise OSError(f"cannot be read: {shard} is cut short")
        if self.verify and found.checksum[index] not in (UNKNOWN, zlib.crc32(data)):
            raise OSError(f"is damaged: its bytes in {shard} are not those that were packed")
        return data, found.endings[found.kind[index]]

    def open(self, index: int) -> tuple[Opened, int]:
        data, ending = self.read(index)
        try:
            image = open_raw(data) if ending == RAW else self._opened(data, ending)
        except OSError as error:
            raise OSError(f"cannot be decoded: {error.strerror or error}") from error
        return image, int(self.labels[index])

    def _opened(self, data: bytes, ending: str) -> Opened:
        return open_image(data, ending, upright=self.upright)


def open_raw(data: bytes) -> Opened:
    """Open an array of pixels as numpy stores it."""
    start = data[:HEADER_BYTES]
    shape, first = _read_header(start[: start.find(b"\n") + 1])
    try:
        pixels = np.frombuffer(data, np.uint8, offset=first).reshape(shape)
    except ValueError as error:
        raise OSError(f"not an array of pixels: {error}") from error

    def decode(box: Box | None) -> np.ndarray:
        top, left, height, width = box or (0, 0, *shape[:2])
        # a copy: bytes must not be written to
        return pixels[top : top + height, left : left + width].copy()

    return Opened(shape[0], shape[1], decode)


@lru_cache(maxsize=4096)
def _read_header(start: bytes) -> tuple[tuple[int, int, int], int]:
    """Return an array's shape and where its pixels begin; many images have the same header."""
    file = io.BytesIO(start)
    try:
        np.lib.format.read_magic(file)
        shape, is_by_column, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError as error:
        raise OSError(f"not an array of pixels: {error}") from error
    if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or is_by_column:
        raise OSError("not an array (height, width, 3) of uint8, by rows")
    return shape, len(start)


def packed_images(
    place: Place, kept: Path, split: str, *, classes: str | None, verify: bool, upright: bool
) -> tuple[PackedImages, list[str]]:
    """Return a split's images and its class names; shards without an index get one.

    `kept` is the folder of the index. One that was made of other shards than are there now is
    made anew. Raises InputError for shards that are missing, or not as a packed set's index says.
    """
    path = index_path(kept, split)
    with ExitStack() as stack:
        if isinstance(place, Remote):
            # one process of a machine changes what is kept, the others wait
            wait_for_others(path, stack)
        index = _index_of(place, path, split, classes)
    if isinstance(place, Folder):
        _check_shards(index, place, split)
    known = class_ids() if classes == "imagenet" else index.classes
    if index.label.max() >= len(known):
        problem = f"must have {index.label.max() + 1} classes, as the labels have"
        raise InputError("data.args.classes", classes, problem)
    images = PackedImages(
        kept,
        index.names,
        index.label,
        others=index.others,
        upright=upright,
        index=index,
        place=place,
        verify=verify,
    )
    return images, known


def _index_of(place: Place, path: Path, split: str, classes: str | None) -> Index:
    """Return the index that is kept, or one made anew where it is not that of the shards."""
    if isinstance(place, Remote) and place.has_changed(path.name):
        console.line(f"{place.address}: {path.name} has changed there; all is fetched anew")
        place.forget(split)
    if not path.exists():
        return _make_index(place, path, split, classes)
    index = Index.load(path)
    # a set that was packed here has checksums, which move with it; shards from elsewhere do not
    if UNKNOWN in index.checksum[:1] and (change := _change(index, place, split)):
        console.line(f"{path}: made anew, as {change}")
        if isinstance(place, Remote):
            place.forget(split)
        return _make_index(place, path, split, classes)
    return index


def _make_index(place: Place, path: Path, split: str, classes: str | None) -> Index:
    """Bring the index that lies beside the shards, or make one of them."""
    try:
        there = place.names()
        if isinstance(place, Remote) and path.name in there:
            place.fetch_index(path.name)
            return Index.load(path)
        if PLAN in there:
            problem = "was not packed to the end; repeat the command that packs it"
            raise InputError("data.root", place.root, problem)
        names = [name for name in there if is_of(name, split)]
        if not names:
            problem = f"has neither {path.name} nor shards named *{split}*.tar"
            raise InputError("data.root", place.root, problem)
        if isinstance(place, Remote) and not place.gives_parts(names[0]):
            problem = "the server gives no parts of files, which an index is made of"
            raise InputError("data.root", place.root, f"{problem}; copy the shards to a folder")
        index = index_shards(place, names, class_ids() if classes == "imagenet" else None)
    except OSError as error:
        problem = f"{path.name} cannot be made: {error.strerror or error}"
        raise InputError("data.root", place.root, problem) from error
    try:
        index.save(path)
    except OSError as error:
        reason = error.strerror or error
        console.line(f"{path} cannot be kept ({reason}): it is made at each start")
    return index


def _change(index: Index, place: Place, split: str) -> str:
    """Say in which way shards are not those that an index was made of; nothing if they are."""
    known = [name for name, _ in index.shards]
    try:
        found = [name for name in place.names() if is_of(name, split)]
        if new := sorted(set(found) ^ set(known)):
            return f"{new[0]} {'is there now' if new[0] in found else 'is gone'}"
        if len(index.stamps) != len(known):
            return "it does not say when its shards were written"
        for name, stamp in zip(known, index.stamps, strict=True):
            if place.stamp(name) != stamp:
                return f"{name} has changed"
    except (OSError, InputError) as error:
        if isinstance(place, Folder):
            raise
        console.line(f"{error}; what is in the cache is used as it is")
    return ""


def _check_shards(index: Index, place: Folder, split: str) -> None:
    """Raise InputError for shards that are missing, cut short, or not of the index."""
    for name, size in index.shards:
        try:
            found = place.size(name)
        except OSError as error:
            raise InputError("data.root", place.path, f"{name} is missing") from error
        if found != size:
            problem = f"{name} has {found:,} bytes, where the index says {size:,}"
            advice = "it was cut short or changed; fetch or pack it again"
            raise InputError("data.root", place.path, f"{problem}: {advice}")
    strangers = [each for each in place.names() if is_of(each, split)]
    strangers = sorted(set(strangers) - {name for name, _ in index.shards})
    if strangers:
        problem = f"{strangers[0]} is not in {split}.index, which was packed without it"
        advice = f"remove {split}.index to use all shards, or move that one away"
        raise InputError("data.root", place.path, f"{problem}; {advice}")
