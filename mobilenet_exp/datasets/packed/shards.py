"""Tar shards of images in WebDataset's convention, and the index that finds an image in them.

A shard holds the files of an image one after the other, under one key: `000000017.jpg` and
`000000017.cls`, its label as text. The index lies beside the shards; for shards from
elsewhere it is made once.
"""

import json
import posixpath
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.datasets.folders import image_endings
from mobilenet_exp.datasets.listing import Names, map_arrays, save_arrays

FORMAT = "mobilenet_exp shards 1"
# what a set is packed with; it is there from the beginning
PLAN = "packing.json"
BLOCK = tarfile.BLOCKSIZE
# an array of pixels, as numpy stores it
RAW = ".npy"
# an image's label, as text
LABEL = ".cls"
# no checksum is known of an image in a shard from elsewhere
UNKNOWN = -1
# parts of a shard's name that say which split it belongs to
SPLITS = {"train": {"train", "training"}, "val": {"val", "valid", "validation"}}
PIECE = 1 << 20


@dataclass(frozen=True)
class Index:
    """The position of each image: its shard, first byte and length; its label and checksum.

    `shards` are names with lengths in bytes; `endings` are the images' extensions, by number
    in `kind`. For shards that were not packed here, `stamps` are fingerprints that show a
    change, and `others` are files in them that belong to no image, with the reason.
    """

    shards: list[tuple[str, int]]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    label: np.ndarray
    checksum: np.ndarray
    kind: np.ndarray
    endings: list[str]
    names: Names
    classes: list[str]
    stamps: list[str] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offset)

    def save(self, path: Path) -> None:
        """Write the index; a reader finds all of it or none."""
        arrays = {key: getattr(self, key) for key in _ARRAYS}
        arrays |= {"names": self.names.text, "ends": self.names.ends}
        texts = {key: getattr(self, key) for key in _TEXTS}
        save_arrays(path, arrays, {"format": FORMAT, "texts": json.dumps(texts)})

    @classmethod
    def load(cls, path: Path) -> "Index":
        """Read an index. Raises InputError for a file that is none."""
        try:
            arrays, about = map_arrays(path)
            if about.get("format") != FORMAT:
                raise ValueError("its format is not known")
            texts = json.loads(about["texts"])
            names = Names(arrays.pop("names"), arrays.pop("ends"))
            shards = [(name, size) for name, size in texts.pop("shards")]
            fields: dict[str, Any] = {**arrays, **texts}
            return cls(shards, names=names, **fields)
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"{path.name} is not an index of shards ({error}); remove it to make it anew"
            raise InputError("data.root", path.parent, problem) from error

    @classmethod
    def joined(cls, parts: list["Index"]) -> "Index":
        """Return one index of the shards of several, which have the same classes."""
        firsts = np.cumsum([0, *(len(part.shards) for part in parts)])
        arrays = {
            key: np.concatenate([getattr(part, key) for part in parts])
            for key in _ARRAYS
            if key not in ("shard", "kind")
        }
        endings = sorted({ending for part in parts for ending in part.endings})
        kinds = [np.array([endings.index(end) for end in part.endings]) for part in parts]
        return cls(
            [shard for part in parts for shard in part.shards],
            np.concatenate([p.shard + first for p, first in zip(parts, firsts, strict=False)]),
            names=Names.of(name for part in parts for name in part.names),
            kind=np.concatenate(
                [of[part.kind] for of, part in zip(kinds, parts, strict=True)]
            ).astype(np.int8),
            endings=endings,
            classes=parts[0].classes,
            **arrays,
        )


_TEXTS = ("shards", "endings", "classes", "stamps", "others")
_ARRAYS = ("shard", "offset", "size", "label", "checksum", "kind")


def index_path(folder: Path, split: str) -> Path:
    """Return where the index of a split lies."""
    return folder / f"{split}.index"


def is_of(name: str, split: str) -> bool:
    """Return whether a file is a shard of `train` or `val`, by a word of its name."""
    parts = set(re.split("[^a-z]+", name.lower()))
    return name.endswith(".tar") and [key for key in SPLITS if parts & SPLITS[key]] == [split]


class ShardStore(Protocol):
    """Where shards are: in a folder, or at an address."""

    @property
    def root(self) -> object:
        """Return the folder or the address."""

    def names(self) -> list[str]:
        """Return the files there, sorted."""

    def size(self, name: str) -> int:
        """Return a file's length in bytes."""

    def stamp(self, name: str) -> str:
        """Return a fingerprint of a file: its length, and its modification time or checksum."""

    def open(self, name: str) -> Any:
        """Open a file for reading at any position."""

    def read(self, shard: str, first: int, size: int) -> bytes:
        """Return bytes of a shard; raises OSError where they cannot be had."""


@dataclass(frozen=True)
class Folder:
    """Shards on this machine."""

    path: Path

    @property
    def root(self) -> Path:
        return self.path

    def names(self) -> list[str]:
        return sorted(each.name for each in self.path.iterdir())

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def stamp(self, name: str) -> str:
        facts = (self.path / name).stat()
        return f"{facts.st_size} {facts.st_mtime_ns}"

    def open(self, name: str) -> Any:
        return open(self.path / name, "rb")

    def read(self, shard: str, first: int, size: int) -> bytes:
        return read_part(self.path / shard, first, size)


def read_part(path: Path, first: int, size: int) -> bytes:
    """Return bytes of a file; several threads may ask at once."""
    with open(path, "rb", buffering=0) as file:
        file.seek(first)
        return file.read(size)


def index_shards(store: ShardStore, names: list[str], classes: list[str] | None) -> Index:
    """Look through shards from elsewhere and return their index; labels are in `.cls` files.

    `classes` None: the labels' numbers. Raises InputError for a shard that is cut short or
    follows another convention.
    """
    found = []
    others: dict[str, str] = {}
    # before they are read: one that changes meanwhile is read anew the next time
    stamps = [store.stamp(name) for name in names]
    for number, name in enumerate(names):
        images, left_out = _members(store, name)
        found += [(number, *each) for each in images]
        others |= {f"{name}/{each}": why for each, why in left_out.items()}
    if not found:
        raise InputError("data.root", names[0], "holds no images")
    shard, keys, ends, offset, size, label = zip(*found, strict=True)
    endings = sorted(set(ends))
    count = max(label) + 1
    return Index(
        [(name, store.size(name)) for name in names],
        np.array(shard, np.int32),
        np.array(offset, np.int64),
        np.array(size, np.int64),
        np.array(label, np.int32),
        np.full(len(found), UNKNOWN, np.int64),
        np.array([endings.index(end) for end in ends], np.int8),
        endings,
        Names.of(f"{key}{end}" for key, end in zip(keys, ends, strict=True)),
        classes or [str(number) for number in range(count)],
        stamps,
        others,
    )


def _members(
    store: ShardStore, shard: str
) -> tuple[list[tuple[str, str, int, int, int]], dict[str, str]]:
    """Return key, ending, offset, length and label of each image of a shard, and other files."""
    try:
        with store.open(shard) as opened:
            files, others = _read_members(opened)
    except tarfile.TarError as error:
        raise InputError("data.root", shard, f"is cut short or no tar file ({error})") from error
    except OSError as error:
        raise InputError("data.root", shard, f"cannot be read: {error}") from error
    try:
        return _images_of(files, others), others
    except ValueError as error:
        problem = f"is not in WebDataset's convention: {error}"
        raise InputError("data.root", shard, problem) from error


class _Member(NamedTuple):
    """A file in a shard: where its bytes are, and its text if it is a label."""

    offset: int
    size: int
    label: str | None


def _read_members(opened: Any) -> tuple[dict[str, _Member], dict[str, str]]:
    """Return a tar's files by name, links included, and its other members with the reason."""
    files: dict[str, _Member] = {}
    others: dict[str, str] = {}
    end = 0
    with tarfile.open(fileobj=opened, mode="r:") as tar:
        for member in tar:
            # where the next one begins: a sparse file takes less than its size
            end = tar.offset
            name = posixpath.normpath(member.name)
            if member.isdir():
                continue
            if name in files or posixpath.basename(name).startswith("."):
                # of two, the first one counts; macOS adds a hidden file to each
                others[name] = "there before in this shard" if name in files else "a hidden file"
            elif member.islnk() or member.issym():
                folder = posixpath.dirname(name) if member.issym() else ""
                target = posixpath.normpath(posixpath.join(folder, member.linkname))
                if target in files:
                    files[name] = files[target]
                else:
                    others[name] = f"a link to {target}, which is not before it in the shard"
            elif member.issparse():
                others[name] = "a sparse file, whose bytes do not lie together"
            elif not member.isfile():
                others[name] = "not a regular file"
            else:
                file = tar.extractfile(member) if name.lower().endswith(LABEL) else None
                label = file.read().decode(errors="replace").strip() if file else None
                files[name] = _Member(member.offset_data, member.size, label)
    _check_end(opened, end)
    return files, others


def _images_of(
    files: dict[str, _Member], others: dict[str, str]
) -> list[tuple[str, str, int, int, int]]:
    """Pair images with their labels; `others` gets the files that belong to no image.

    A key ends at the first dot of a name, as WebDataset has it, or at the last, of which
    names like `IMG.01.jpg` are made. Raises ValueError for what is not in the convention.
    """
    images: dict[str, tuple[str, _Member]] = {}
    labels: dict[str, int] = {}
    known = {*image_endings(), RAW, LABEL}
    for name, file in files.items():
        folder, base = posixpath.split(name)
        stem, _, ending = base.partition(".")
        if f".{ending.lower()}" not in known:
            stem, ending = base.rpartition(".")[::2]
        key, ending = posixpath.join(folder, stem), f".{ending.lower()}"
        if ending == LABEL:
            text = file.label or ""
            if not text.isdecimal():
                raise ValueError(f"{name} holds no label, but {text[:20]!r}")
            labels[key] = int(text)
        elif ending in known:
            if key in images:
                raise ValueError(f"{key} has two images, {images[key][0]} and {ending}")
            images[key] = ending, file
    found = [
        (key, ending, file.offset, file.size, labels[key])
        for key, (ending, file) in images.items()
        if key in labels
    ]
    keys = {key for key, *_ in found}
    for key in images.keys() - keys:
        # 7.mask.png beside 7.jpg belongs to it
        if _group(key) not in keys:
            raise ValueError(f"{key}{images[key][0]} has no {key}{LABEL} with its label beside it")
    others |= {
        name: "belongs to no image"
        for name in files
        if _group(name) not in keys and posixpath.splitext(name)[0] not in keys
    }
    return found


def _group(name: str) -> str:
    """Return a name up to the first dot of its last part: WebDataset's key."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


def _check_end(opened: Any, end: int) -> None:
    """Check that a tar file ends where its reader stopped: the reader stops at damage, too."""
    opened.seek(end)
    size = 0
    while piece := opened.read(PIECE):
        size += len(piece)
        if any(piece):
            raise tarfile.ReadError(f"there is no end after byte {end:,}")
    if size < 2 * BLOCK:
        raise tarfile.ReadError(f"there is no end after byte {end:,}")
    if size > tarfile.RECORDSIZE + 2 * BLOCK:
        # as a download leaves it that made room for all and brought a part
        raise tarfile.ReadError(f"there are only zeros after byte {end:,}")
