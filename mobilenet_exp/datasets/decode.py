"""Decodes an image file, or a region of it, from bytes to pixels.

nvImageCodec, where it is installed, decodes JPEG files, and only as far as the region reaches.
Pillow decodes all other files. Both give the same pixels.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from mobilenet_exp.datasets import codec
from mobilenet_exp.datasets.codec import Box
from mobilenet_exp.datasets.folders import HEIC, NEEDS_HEIC, image_endings

# as phones and burst modes write JPEG
SAME_KINDS = {"MPO": "JPEG", "APNG": "PNG"}
# EXIF's tag 0x0112; 1 and 0: as it lies
ORIENTATION = 0x0112
CONVERTED_MODES = {
    "1": "greyscale",
    "L": "greyscale",
    "LA": "greyscale",
    "CMYK": "CMYK",
    "P": "palette",
    "RGBA": "alpha dropped",
}


@dataclass(frozen=True)
class Opened:
    """An image whose header is read; `decode` gives an array (height, width, 3) of uint8.

    `note` says what was converted to make it RGB, "" for a plain RGB file. `is_sideways`:
    its EXIF orientation was not applied. `decode` raises OSError with the reason for a damaged
    file; damage after the box may stay unnoticed.
    """

    height: int
    width: int
    decode: Callable[[Box | None], np.ndarray]
    note: str = ""
    is_sideways: bool = False


def open_image(data: bytes, ending: str, *, upright: bool = True) -> Opened:
    """Read the header of an image file. Raises OSError with the reason if that cannot be done.

    Greyscale, CMYK and palette files become RGB, 16-bit ones are scaled to 8 bits (Pillow
    alone would clip them to white). `upright` turns a photo as its EXIF orientation says;
    without it the note says that it was not turned. `ending` is the file name's
    extension, with its dot; the note says if it is not that of the content.
    """
    return _open_jpeg(data, ending, upright=upright) or _open_by_pillow(
        data, ending, upright=upright
    )


def _open_jpeg(data: bytes, ending: str, *, upright: bool) -> Opened | None:
    """Open an ordinary JPEG file for decoding by region; None for one that Pillow must decode."""
    # a truncated file lacks the end marker; Pillow reports what is wrong with it
    if data[:3] != b"\xff\xd8\xff" or data.find(b"\xff\xd9", -1024) < 0 or codec.library() is None:
        return None
    has_app1, pixels_from = _read_marks(data)
    if pixels_from is None or _has_foreign_mark(data, pixels_from):
        return None
    try:
        stream = codec.library().CodeStream(data)
        height, width, channels = stream.height, stream.width, stream.num_channels
        is_plain = stream.codec_name == "jpeg" and stream.precision == 8 and channels in (1, 3)
    except RuntimeError:
        return None
    if not is_plain or height * width > (Image.MAX_IMAGE_PIXELS or 0):
        return None
    is_turned = has_app1 and _asked_turn(data) is not None
    if is_turned and upright:
        return None

    def decode(box: Box | None) -> np.ndarray:
        found = codec.decode_region(stream, box)
        return _cut(_pillow_pixels(data), box) if found is None else found

    notes = ["greyscale"] if channels == 1 else []
    return Opened(
        height,
        width,
        decode,
        _joined(notes, _misnamed(ending, "JPEG"), is_turned=is_turned, upright=upright),
        is_sideways=is_turned,
    )


def _open_by_pillow(data: bytes, ending: str, *, upright: bool) -> Opened:
    if not data:
        raise OSError("the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind, mode = image.format, image.mode
            is_16_bit = mode.startswith("I") or any(";16" in str(tile[3]) for tile in image.tile)
            asked = _orientation(image)
            image.load()
            # PNG's is known now; Pillow has turned a TIFF by itself
            left = _orientation(image)
            rgb = (_to_8_bits(image) if mode.startswith(("I", "F")) else image).convert("RGB")
    except UnidentifiedImageError as error:
        raise OSError(NEEDS_HEIC if ending.lower() in HEIC else "not an image") from error
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders fail on damaged files in any way
        raise OSError(str(error)) from error
    notes = ["16-bit"] if is_16_bit else []
    if converted := CONVERTED_MODES.get("L" if mode.startswith("I") else mode):
        notes.append(converted)
    is_turned = asked is not None or left is not None
    if upright and left is not None:
        rgb = rgb.transpose(left)
    elif not upright and left is None and asked is not None:
        rgb = rgb.transpose(_BACK.get(asked, asked))
    pixels = np.array(rgb)
    return Opened(
        rgb.height,
        rgb.width,
        lambda box: _cut(pixels, box),
        _joined(notes, _misnamed(ending, kind or ""), is_turned=is_turned, upright=upright),
        is_sideways=is_turned and not upright,
    )


def _joined(notes: list[str], misnamed: str, *, is_turned: bool, upright: bool) -> str:
    turned = "turned upright" if upright else "EXIF orientation ignored"
    return ", ".join([*notes, *([misnamed] if misnamed else []), *([turned] if is_turned else [])])


def _cut(pixels: np.ndarray, box: Box | None) -> np.ndarray:
    if box is None:
        return pixels
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


def _pillow_pixels(data: bytes) -> np.ndarray:
    """Decode what nvImageCodec could not: Pillow tolerates more, or raises the reason."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:
        raise OSError(str(error)) from error


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
    """Return the transpose that turns a photo upright, or None if it is upright."""
    try:
        return _TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:
        # damaged EXIF data says nothing
        return None


def _asked_turn(data: bytes) -> Image.Transpose | None:
    with Image.open(io.BytesIO(data)) as image:
        return _orientation(image)


def _read_marks(data: bytes) -> tuple[bool, int | None]:
    """Follow the segments of a JPEG file up to its pixels.

    Returns whether one may hold an orientation, as EXIF and XMP do, and where pixels begin;
    None where the segments do not lead there.
    """
    at, has_app1 = 2, False
    while data[at : at + 1] == b"\xff":
        mark = data[at + 1 : at + 2]
        if mark == b"\xda":
            return has_app1, at
        if mark == b"\xff":
            # any number of these may stand before a mark
            at += 1
            continue
        has_app1 |= mark == b"\xe1"
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return has_app1, None


# what stands after 0xFF where pixels are stored: 0, restarts, tables, scans, the end
_IS_FOREIGN: np.ndarray = np.ones(256, bool)
_IS_FOREIGN[[0x00, 0xC4, *range(0xD0, 0xD8), 0xD9, 0xDA, 0xDB, 0xDD, 0xFF]] = False


def _has_foreign_mark(data: bytes, first: int) -> bool:
    """Return whether damage put a mark among the pixels at which a decoder gives up."""
    values = np.frombuffer(data, np.uint8, offset=first)
    is_mark = values[:-1] == 0xFF
    is_mark &= values[1:] != 0
    # most files have none but the first and the last
    if np.count_nonzero(is_mark) == 2 and data.endswith(b"\xff\xd9"):
        return False
    return bool(_IS_FOREIGN[values[1:][is_mark]].any())


def _misnamed(ending: str, kind: str) -> str:
    """Return a note if a file has an extension that is not that of its format, or empty text."""
    named = image_endings().get(ending.lower(), ending.lower())
    is_right = not ending or SAME_KINDS.get(named, named) == SAME_KINDS.get(kind, kind)
    return "" if is_right else f"{SAME_KINDS.get(kind, kind)} named {ending}"


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(f"its {values.dtype} pixels are not 16-bit grey levels")
    return Image.fromarray((values.astype(np.int64) // 257).astype("u1"))
