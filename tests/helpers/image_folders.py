"""Folders of real photographs, as people have them; the photographs come with packages."""

from pathlib import Path

import matplotlib
import numpy as np
import sklearn
from PIL import Image

_PHOTOS = Path(sklearn.__file__).parent / "datasets" / "images"
CHINA, FLOWER = _PHOTOS / "china.jpg", _PHOTOS / "flower.jpg"
HOPPER = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
NUM_FLAT = 12


def write_photos(folder: Path) -> None:
    """Write photographs, and what people's folders hold besides."""
    for path in (CHINA, FLOWER, HOPPER):
        (folder / path.name).write_bytes(path.read_bytes())
    china = Image.open(CHINA)
    china.convert("L").save(folder / "grey.jpg")
    china.convert("CMYK").save(folder / "cmyk.jpg")
    deep = np.asarray(china.convert("L")).astype("uint16") * 257
    Image.fromarray(deep).save(folder / "deep.png")
    china.convert("RGBA").save(folder / "alpha.png")
    china.save(folder / "a_png.jpg", format="PNG")
    content = CHINA.read_bytes()
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")


def write_flat_set(root: Path) -> None:
    """Write a validation set in one flat folder, with labels; three files cannot be scored."""
    (root / "val").mkdir()
    lines = []
    for number in range(1, NUM_FLAT + 1):
        image = Image.open((CHINA, FLOWER, HOPPER)[number % 3]).convert("RGB")
        width, height = image.size
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        image.crop((9 * number, 5 * number, width, height)).save(root / "val" / name)
        lines.append(f"{name} {37 * number % 1000}")
    (root / "val" / "ILSVRC2012_val_00000003.JPEG").write_bytes(b"")
    Image.open(CHINA).convert("L").save(root / "val" / "ILSVRC2012_val_00000004.JPEG")
    lines[6] = lines[6].split()[0] + " 1000"
    del lines[4]
    lines.append("ILSVRC2012_val_00000099.JPEG 4")
    (root / "val.txt").write_text("\n".join(lines))


def write_classes(root: Path, counts: dict[str, int], side: int = 40) -> None:
    """Write two classes of noise, so many JPEG files of each in every split."""
    random = np.random.default_rng(0)
    for split, count in counts.items():
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.jpg")


def write_class_folders(root: Path) -> None:
    """Write two classes of JPEG files, 7 to train on and 5 to evaluate, of uneven sizes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 5)):
        for index in range(count):
            path = root / split / f"class{index % 2}" / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (60 + index, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
