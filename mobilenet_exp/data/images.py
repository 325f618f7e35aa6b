"""Image files decoded into RGB, with a note on what was odd about them. Knows no data set."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

# the endings that belong to a format, by PIL's name of it
ENDINGS = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "BMP": (".bmp",), "GIF": (".gif",)}
EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif",
)  # fmt: skip
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
    """An RGB image, and what was converted to make it one; "" for a plain RGB file."""

    image: Image.Image
    note: str = ""


def read_picture(path: str | Path) -> Picture:
    """Decode a file into RGB. Raises OSError naming it if that cannot be done.

    Greyscale, CMYK and palette files are converted, 16-bit ones scaled to 8 bits (PIL
    alone would clip them to white).
    """
    try:
        if Path(path).stat().st_size == 0:
            raise OSError("the file is empty")
        with Image.open(path) as image:
            kind, mode = image.format, image.mode
            is_16_bit = mode.startswith("I") or any(";16" in str(tile[3]) for tile in image.tile)
            image.load()
            rgb = (_to_8_bits(image) if mode.startswith(("I", "F")) else image).convert("RGB")
    except UnidentifiedImageError as error:
        raise OSError(f"{path} cannot be decoded: not an image") from error
    except MemoryError:
        raise
    except Exception as error:
        # PIL's decoders fail on damaged files in any way
        raise OSError(f"{path} cannot be decoded: {error}") from error
    notes = ["16-bit"] if is_16_bit else []
    if odd := ODD_MODES.get("L" if mode.startswith("I") else mode):
        notes.append(odd)
    endings = ENDINGS.get(kind, ())
    if endings and Path(path).suffix.lower() not in endings:
        notes.append(f"{kind} named {Path(path).suffix}")
    return Picture(rgb, ", ".join(notes))


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(f"its {values.dtype} pixels are not 16-bit grey levels")
    return Image.fromarray((values.astype(np.int64) // 257).astype("u1"))


@dataclass
class ImageFiles(Dataset):
    """Files under `root` with their labels; -1 where `problems` says what is wrong.

    `missing` names files that have a label but are not in the folder.
    """

    root: Path
    samples: list[tuple[str, int]]
    problems: dict[int, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.samples[index]
        if index in self.problems:
            raise OSError(f"{path} cannot be used: {self.problems[index]}")
        return read_picture(path).image, label

    def read(self, index: int) -> tuple[Image.Image | None, int, str]:
        """Return image, label and note; None, -1 and the reason if it cannot be scored."""
        path, label = self.samples[index]
        if index in self.problems:
            return None, -1, self.problems[index]
        try:
            picture = read_picture(path)
        except OSError as error:
            return None, -1, str(error).removeprefix(f"{path} ")
        return picture.image, label, picture.note

    def name(self, index: int) -> str:
        """Return a file's path below the root."""
        return str(Path(self.samples[index][0]).relative_to(self.root))


def find_images(folder: Path) -> list[Path]:
    """Return the image files directly in `folder`, sorted by name, without hidden ones."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in EXTENSIONS and path.name[0] != "." and path.is_file()
    )
