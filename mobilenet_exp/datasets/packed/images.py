"""Images of packed sets, read one at a time and in any order."""

import io
import zlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from mobilenet_exp.config.schema import ImagesConfig
from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.datasets.codec import Box
from mobilenet_exp.datasets.decode import Opened, open_image
from mobilenet_exp.datasets.imagenet import class_ids
from mobilenet_exp.datasets.images import ImageFiles, ImageSet
from mobilenet_exp.datasets.listing import wait_for_others
from mobilenet_exp.datasets.packed.remote import Remote, default_cache, is_address
from mobilenet_exp.datasets.packed.shards import (
    PLAN,
    RAW,
    UNKNOWN,
    Folder,
    Index,
    ShardStore,
    index_path,
    index_shards,
    is_of,
)

# of an array of pixels in numpy's format; it ends in a new line
HEADER_BYTES = 256


@dataclass
class PackedImages(ImageFiles):
    """Images in shards. `verify`: whether each one's checksum is verified when it is read."""

    index: Index = field(kw_only=True)
    store: ShardStore = field(kw_only=True)
    verify: bool = field(kw_only=True, default=True)

    def read(self, index: int) -> tuple[bytes, str]:
        found = self.index
        shard, size = found.shards[found.shard[index]][0], int(found.size[index])
        data = self.store.read(shard, int(found.offset[index]), size)
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


def packed_set(
    data: ImagesConfig,
    split: str,
    *,
    classes: str | None,
    verify: bool,
    cache: str | None,
    cache_bytes: float,
) -> ImageSet:
    """Return the images of `data.root`, a folder or an address; see `sets.packed`."""
    if data.root is None:
        raise InputError("data.root", None, "must be given: the folder of the shards")
    if classes not in (None, "imagenet"):
        raise InputError("data.args.classes", classes, "not known; allowed: imagenet, null")
    store: ShardStore
    if is_address(data.root):
        kept = Path(cache).expanduser() if cache else default_cache(data.root)
        store = Remote(data.root, kept, cache_bytes)
    else:
        kept = Path(data.root)
        if not kept.is_dir():
            raise InputError("data.root", kept, "no such folder")
        store = Folder(kept)
    upright = data.exif == "apply"
    images, names = packed_images(
        store, kept, split, classes=classes, verify=verify, upright=upright
    )
    if isinstance(store, Remote):
        store.fetch_ahead(images.index)
    return ImageSet(images, names)


def packed_images(
    store: ShardStore, kept: Path, split: str, *, classes: str | None, verify: bool, upright: bool
) -> tuple[PackedImages, list[str]]:
    """Return a split's images and its class names; shards without an index get one.

    `kept` is the folder of the index. An index of other shards than the present ones is made
    again. Raises InputError for shards that are missing, or that differ from the index of a
    packed set.
    """
    path = index_path(kept, split)
    with ExitStack() as stack:
        if isinstance(store, Remote):
            # one process of a machine changes what is kept, the others wait
            wait_for_others(path, stack)
        index = _index_of(store, path, split, classes)
    if isinstance(store, Folder):
        _check_shards(index, store, split)
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
        store=store,
        verify=verify,
    )
    return images, known


def _index_of(store: ShardStore, path: Path, split: str, classes: str | None) -> Index:
    """Return the stored index, or a new one if it does not describe the present shards."""
    if isinstance(store, Remote) and store.has_changed(path.name):
        console.line(f"{store.address}: {path.name} has changed there; all is fetched anew")
        store.forget(split)
    if not path.exists():
        return _make_index(store, path, split, classes)
    index = Index.load(path)
    # sets packed here may move and have checksums; other shards are compared with the index
    if UNKNOWN in index.checksum[:1] and (change := _change(index, store, split)):
        console.line(f"{path}: made anew, as {change}")
        if isinstance(store, Remote):
            store.forget(split)
        return _make_index(store, path, split, classes)
    return index


def _make_index(store: ShardStore, path: Path, split: str, classes: str | None) -> Index:
    """Bring the index that lies beside the shards, or make one of them."""
    try:
        there = store.names()
        if isinstance(store, Remote) and path.name in there:
            store.fetch_index(path.name)
            return Index.load(path)
        if PLAN in there:
            problem = "was not packed to the end; repeat the command that packs it"
            raise InputError("data.root", store.root, problem)
        names = [name for name in there if is_of(name, split)]
        if not names:
            problem = f"has neither {path.name} nor shards named *{split}*.tar"
            raise InputError("data.root", store.root, problem)
        if isinstance(store, Remote) and not store.gives_parts(names[0]):
            problem = "the server gives no parts of files, which an index is made of"
            raise InputError("data.root", store.root, f"{problem}; copy the shards to a folder")
        index = index_shards(store, names, class_ids() if classes == "imagenet" else None)
    except OSError as error:
        problem = f"{path.name} cannot be made: {error.strerror or error}"
        raise InputError("data.root", store.root, problem) from error
    try:
        index.save(path)
    except OSError as error:
        reason = error.strerror or error
        console.line(f"{path} cannot be kept ({reason}): it is made at each start")
    return index


def _change(index: Index, store: ShardStore, split: str) -> str:
    """Return how the shards differ from those that an index was made of, empty if they do not."""
    known = [name for name, _ in index.shards]
    try:
        found = [name for name in store.names() if is_of(name, split)]
        if new := sorted(set(found) ^ set(known)):
            return f"{new[0]} {'is there now' if new[0] in found else 'is gone'}"
        if len(index.stamps) != len(known):
            return "it does not say when its shards were written"
        for name, stamp in zip(known, index.stamps, strict=True):
            if store.stamp(name) != stamp:
                return f"{name} has changed"
    except (OSError, InputError) as error:
        if isinstance(store, Folder):
            raise
        console.line(f"{error}; the cache is used unchanged")
    return ""


def _check_shards(index: Index, store: Folder, split: str) -> None:
    """Raise InputError for shards that are missing, cut short, or not of the index."""
    for name, size in index.shards:
        try:
            found = store.size(name)
        except OSError as error:
            raise InputError("data.root", store.path, f"{name} is missing") from error
        if found != size:
            problem = f"{name} has {found:,} bytes, where the index says {size:,}"
            advice = "it was cut short or changed; fetch or pack it again"
            raise InputError("data.root", store.path, f"{problem}: {advice}")
    unknown = [each for each in store.names() if is_of(each, split)]
    unknown = sorted(set(unknown) - {name for name, _ in index.shards})
    if unknown:
        problem = f"{unknown[0]} is not in {split}.index, which was packed without it"
        advice = f"remove {split}.index to use all shards, or move that one away"
        raise InputError("data.root", store.path, f"{problem}; {advice}")
