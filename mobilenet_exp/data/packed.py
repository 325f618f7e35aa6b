"""Images of packed sets, read one at a time and in any order. Knows no transform."""

import io
import os
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data.decode import Box, Opened, open_image
from mobilenet_exp.data.imagenet import class_ids
from mobilenet_exp.data.images import ImageFiles
from mobilenet_exp.data.shards import PLAN, RAW, UNKNOWN, Index, index_path, index_shards, is_of

# of an array of pixels in numpy's format; it ends in a new line
HEADER_BYTES = 256


class Place(Protocol):
    """Where shards are."""

    def read(self, shard: str, first: int, size: int) -> bytes:
        """Return bytes of a shard; raises OSError where they cannot be had."""


@dataclass(frozen=True)
class Folder:
    """Shards on this machine."""

    path: Path

    def read(self, shard: str, first: int, size: int) -> bytes:
        file = os.open(f"{self.path}/{shard}", os.O_RDONLY)
        try:
            return os.pread(file, size, first)
        finally:
            os.close(file)


@dataclass
class PackedImages(ImageFiles):
    """Images in shards. `verify`: whether each one's checksum is looked at when it is read."""

    index: Index = field(kw_only=True)
    place: Place = field(kw_only=True)
    verify: bool = field(kw_only=True, default=True)

    def open(self, index: int) -> tuple[Opened, int]:
        found, label = self.index, int(self.labels[index])
        shard, size = found.shards[found.shard[index]][0], int(found.size[index])
        data = self.place.read(shard, int(found.offset[index]), size)
        if len(data) != size:
            raise OSError(f"cannot be read: {shard} is cut short")
        if self.verify and found.checksum[index] not in (UNKNOWN, zlib.crc32(data)):
            raise OSError(f"is damaged: its bytes in {shard} are not those that were packed")
        ending = found.endings[found.kind[index]]
        try:
            image = open_raw(data) if ending == RAW else self._opened(data, ending)
        except OSError as error:
            raise OSError(f"cannot be decoded: {error.strerror or error}") from error
        return image, label

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
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError as error:
        raise OSError(f"not an array of pixels: {error}") from error
    if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
        raise OSError("not an array (height, width, 3) of uint8")
    return shape, len(start)


def packed_images(
    folder: Path, place: Place, split: str, *, classes: str | None, verify: bool, upright: bool
) -> tuple[PackedImages, list[str]]:
    """Return a split's images and its class names; shards without an index get one.

    `folder` holds the index. Raises InputError for shards that are missing, or not as the
    index says.
    """
    path = index_path(folder, split)
    if path.exists():
        index = Index.load(path)
    else:
        if (folder / PLAN).exists():
            problem = "was not packed to the end; repeat the command that packs it"
            raise InputError("data.root", folder, problem)
        names = sorted(each.name for each in folder.iterdir() if is_of(each.name, split))
        if not names:
            problem = f"has neither {path.name} nor shards named *{split}*.tar"
            raise InputError("data.root", folder, problem)
        index = index_shards(folder, names, class_ids() if classes == "imagenet" else None)
        _keep(index, path)
    if isinstance(place, Folder):
        _check_lengths(index, place.path)
    known = class_ids() if classes == "imagenet" else index.classes
    if index.label.max() >= len(known):
        problem = f"has labels up to {index.label.max()}, for {len(known)} classes"
        raise InputError("data.args.classes", classes, problem)
    images = PackedImages(
        folder, index.names, index.label, upright=upright, index=index, place=place, verify=verify
    )
    return images, known


def _keep(index: Index, path: Path) -> None:
    try:
        index.save(path)
    except OSError:
        # a folder that cannot be written to: it is made anew each time
        return


def _check_lengths(index: Index, folder: Path) -> None:
    for name, size in index.shards:
        try:
            found = (folder / name).stat().st_size
        except OSError as error:
            raise InputError("data.root", folder, f"{name} is missing") from error
        if found != size:
            problem = f"{name} has {found:,} bytes, where the index says {size:,}"
            advice = "it was cut short or changed; fetch or pack it again"
            raise InputError("data.root", folder, f"{problem}: {advice}")
