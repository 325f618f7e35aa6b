"""Image files decoded into RGB, with a note on what was odd about them. Knows no data set."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from mobilenet_exp.core.text import printable
from mobilenet_exp.data.folders import HEIC, NEEDS_HEIC, image_endings

# as phones and burst modes write JPEG
SAME_KINDS = {"MPO": "JPEG", "APNG": "PNG"}
# EXIF's tag 0x0112; 1 and 0: as it lies
ORIENTATION = 0x0112
ODD_MODES = {
    "1": "greyscale",
    "L": "greyscale",
    "LA": "greyscale",
    "CMYK": "CMYK",
    "P": "palette",
    "RGBA": "alpha dropped",
}


@dataclass(frozen=True)
class Picture:
    """An RGB image, and what was converted to make it one; "" for a plain RGB file.

    `is_unturned`: its EXIF data ask to turn it, which was not done.
    """

    image: Image.Image
    note: str = ""
    is_unturned: bool = False


def read_picture(path: str | Path, *, upright: bool = True) -> Picture:
    """Decode a file into RGB. Raises OSError naming it if that cannot be done.

    Greyscale, CMYK and palette files are converted, 16-bit ones scaled to 8 bits (PIL
    alone would clip them to white). `upright` turns a photo as its EXIF orientation says;
    without it the note says that it was not turned.
    """
    known = image_endings()
    try:
        if Path(path).stat().st_size == 0:
            raise OSError("the file is empty")
        with Image.open(path) as image:
            kind, mode = image.format, image.mode
            is_16_bit = mode.startswith("I") or any(";16" in str(tile[3]) for tile in image.tile)
            asked = _orientation(image)
            image.load()
            # PNG's is known now; Pillow has turned a TIFF by itself
            left = _orientation(image)
            rgb = (_to_8_bits(image) if mode.startswith(("I", "F")) else image).convert("RGB")
    except UnidentifiedImageError as error:
        reason = NEEDS_HEIC if Path(path).suffix.lower() in HEIC else "not an image"
        raise OSError(f"{path} cannot be decoded: {reason}") from error
    except MemoryError:
        raise
    except Exception as error:
        # PIL's decoders fail on damaged files in any way
        raise OSError(f"{path} cannot be decoded: {error}") from error
    notes = ["16-bit"] if is_16_bit else []
    if odd := ODD_MODES.get("L" if mode.startswith("I") else mode):
        notes.append(odd)
    if misnamed := _misnamed(Path(path), kind or "", known):
        notes.append(misnamed)
    is_turned = asked is not None or left is not None
    if upright and left is not None:
        rgb = rgb.transpose(left)
    elif not upright and left is None and asked is not None:
        rgb = rgb.transpose(_BACK.get(asked, asked))
    if is_turned:
        notes.append("turned upright" if upright else "EXIF orientation ignored")
    return Picture(rgb, ", ".join(notes), is_unturned=is_turned and not upright)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# what undoes a turn, where it is not the turn itself
_BACK = {
    Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
}


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """Return what turns a photo upright, or None where it lies as it should."""
    try:
        return _TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:
        # damaged EXIF data says nothing
        return None


def _misnamed(path: Path, kind: str, known: dict[str, str]) -> str:
    """Say that a file's ending is not of its content's format; nothing without an ending."""
    ending = path.suffix.lower()
    named = known.get(ending, ending)
    is_right = not ending or SAME_KINDS.get(named, named) == SAME_KINDS.get(kind, kind)
    return "" if is_right else f"{SAME_KINDS.get(kind, kind)} named {path.suffix}"


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(f"its {values.dtype} pixels are not 16-bit grey levels")
    return Image.fromarray((values.astype(np.int64) // 257).astype("u1"))


@dataclass
class ImageFiles(Dataset):
    """Files under `root` with their labels; -1 where `problems` says what is wrong.

    `missing` names files that have a label but are not in the folder, `others` the files
    that are no images, with the reason. `upright` is `read_picture`'s.
    """

    root: Path
    samples: list[tuple[str, int]]
    problems: dict[int, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)
    upright: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        picture, label, problem = self.read(index)
        if picture is None:
            raise OSError(f"{self.samples[index][0]} {problem}")
        return picture.image, label

    def read(self, index: int) -> tuple[Picture | None, int, str]:
        """Return picture, label and ""; or None, -1 and what is wrong with the file."""
        path, label = self.samples[index]
        if index in self.problems:
            return None, -1, self.problems[index]
        try:
            return read_picture(path, upright=self.upright), label, ""
        except OSError as error:
            # a decoder's message may have several lines
            return None, -1, str(error).removeprefix(f"{path} ").splitlines()[0]

    def name(self, index: int) -> str:
        """Return a file's path below the root, in characters that can be shown."""
        return printable(self.samples[index][0].removeprefix(f"{self.root}{os.sep}"))
