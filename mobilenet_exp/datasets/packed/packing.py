"""Folders of images packed into shards, by threads, resumable, each shard read back.

python -m mobilenet_exp pack data=imagefolder data.root=IMAGES out=FOLDER
"""

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mobilenet_exp.config.schema import ImagesConfig, PackConfig
from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError, RunError
from mobilenet_exp.core.text import examples, plural
from mobilenet_exp.datasets.decode import Opened
from mobilenet_exp.datasets.images import ImageFiles
from mobilenet_exp.datasets.listing import Names
from mobilenet_exp.datasets.packed.shards import BLOCK, PLAN, RAW, Index, index_path
from mobilenet_exp.datasets.sets import build_image_set


class _Packed(NamedTuple):
    """An image's bytes, as they go into a shard."""

    content: bytes
    ending: str


def pack(config: PackConfig) -> Path:
    """Pack `train` and `val` of a data set into `config.out`; return that folder.

    Shards that a call before has finished stay as they are. An image that cannot be decoded
    is packed unchanged, so that its reader reports what is wrong. Raises InputError for a
    folder that holds other images.
    """
    out = Path(config.out)
    settings = ImagesConfig(**asdict(config.data))
    sets = {split: build_image_set(settings, split) for split in ("train", "val")}
    for each in sets.values():
        if not isinstance(each.images, ImageFiles):
            raise InputError("data", config.data.name, "is no set of files, which alone are packed")
        if problems := each.images.problems:
            named = examples({each.images.name(i): why for i, why in problems.items()})
            problem = f"{plural(len(problems), 'image')} without a usable label: {named}"
            raise InputError("data.labels", config.data.labels, problem)
    _begin(out, config, {split: each.images for split, each in sets.items()})
    for split, each in sets.items():
        _pack_split(out, split, each.images, each.classes, config)
    names = " data.args.classes=imagenet" if settings.is_imagenet else ""
    console.line(f"{out}: data=packed data.root={out}{names}")
    return out


def _begin(out: Path, config: PackConfig, sets: dict[str, ImageFiles]) -> None:
    """Make the folder, or see that it was begun with the same images and settings."""
    digest = hashlib.sha256()
    for images in sets.values():
        images.add_to(digest)
    settings = {key: getattr(config, key) for key in ("side", "form", "quality", "shard_images")}
    plan = settings | {"images": digest.hexdigest(), "exif": config.data.exif}
    path = out / PLAN
    if path.exists():
        try:
            begun = json.loads(path.read_text())
        except ValueError as error:
            raise InputError("out", out, f"{PLAN} is damaged; name a new folder") from error
        for key in plan:
            if begun.get(key) != plan[key]:
                what = "other images" if key == "images" else f"{key}={begun.get(key)}"
                raise InputError("out", out, f"was begun with {what}; name a new folder")
        return
    if out.exists() and any(each.name != f"{PLAN}.part" for each in out.iterdir()):
        raise InputError("out", out, "holds something else; name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    half = out / f"{PLAN}.part"
    half.write_text(json.dumps(plan, indent=1) + "\n")
    half.replace(path)


def _pack_split(
    out: Path, split: str, images: ImageFiles, classes: list[str], config: PackConfig
) -> None:
    if index_path(out, split).exists():
        console.line(f"{split}: {plural(len(images), 'image')} are packed already")
        return
    parts = []
    firsts = range(0, len(images), config.shard_images)
    with ThreadPoolExecutor(config.threads or os.cpu_count()) as threads:
        for number, first in enumerate(console.progress(firsts, f"pack {split}", len(firsts))):
            name = f"{split}-{number:06d}.tar"
            part = out / f"{name}.index"
            if not part.exists():
                chosen = range(first, min(first + config.shard_images, len(images)))
                _write_shard(out / name, images, chosen, classes, config, threads).save(part)
            parts.append(Index.load(part))
    index = Index.joined(parts)
    index.save(index_path(out, split))
    for part in out.glob(f"{split}-*.tar.index"):
        part.unlink()
    size = sum(length for _, length in index.shards)
    console.line(f"{split}: {plural(len(index), 'image')}, {size / 1e6:,.1f} MB, all read back")


def _write_shard(
    path: Path,
    images: ImageFiles,
    chosen: range,
    classes: list[str],
    config: PackConfig,
    threads: ThreadPoolExecutor,
) -> Index:
    """Write one shard and return its index; it has its name once it was read back."""
    half = path.with_name(f"{path.name}.part")
    offsets, packed = [], []
    with open(half, "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        for number, each in zip(chosen, _packed(images, chosen, config, threads), strict=True):
            key = f"{number:09d}"
            offsets.append(tar.offset + BLOCK)
            packed.append((len(each.content), zlib.crc32(each.content), each.ending))
            _add(tar, f"{key}{each.ending}", each.content)
            _add(tar, f"{key}.cls", str(images.labels[number]).encode())
    with open(half, "rb+") as written:
        os.fsync(written.fileno())
        for number, offset, (size, checksum, _) in zip(chosen, offsets, packed, strict=True):
            written.seek(offset)
            if zlib.crc32(written.read(size)) != checksum:
                problem = f"{half}: {images.name(number)} cannot be read back as it was written"
                raise RunError(f"{problem}; the disk may be full or damaged")
    sizes, checksums, ends = zip(*packed, strict=True)
    endings = sorted(set(ends))
    index = Index(
        [(path.name, half.stat().st_size)],
        np.zeros(len(chosen), np.int32),
        np.array(offsets, np.int64),
        np.array(sizes, np.int64),
        images.labels[chosen.start : chosen.stop],
        np.array(checksums, np.int64),
        np.array([endings.index(end) for end in ends], np.int8),
        endings,
        Names.of(images.names[number] for number in chosen),
        classes,
    )
    half.replace(path)
    return index


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _packed(
    images: ImageFiles, chosen: range, config: PackConfig, threads: ThreadPoolExecutor
) -> Iterator[_Packed]:
    return threads.map(lambda index: _pack_image(images, index, config), chosen)


def _pack_image(images: ImageFiles, index: int, config: PackConfig) -> _Packed:
    """Return a file's own bytes, or the image smaller, as JPEG or as an array of pixels."""
    if config.side is not None or config.form == "raw":
        try:
            return _encode(_smaller(images.open(index)[0], config.side), config)
        except OSError:
            # its reader reports why
            pass
    try:
        content, ending = images.read(index)
    except OSError as error:
        name = f"{images.root}/{images.name(index)}"
        raise RunError(f"{name} cannot be read: {error.strerror or error}") from error
    return _Packed(content, ending.lower())


def _smaller(image: Opened, side: int | None) -> Image.Image:
    found = Image.fromarray(image.decode(None))
    if side is None or min(found.size) <= side:
        return found
    factor = side / min(found.size)
    size = tuple(max(side, round(length * factor)) for length in found.size)
    return found.resize(size, Image.Resampling.BICUBIC)


def _encode(image: Image.Image, config: PackConfig) -> _Packed:
    file = io.BytesIO()
    if config.form == "raw":
        np.save(file, np.asarray(image))
        return _Packed(file.getvalue(), RAW)
    image.save(file, "JPEG", quality=config.quality)
    return _Packed(file.getvalue(), ".jpg")
