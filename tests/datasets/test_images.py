"""Odd images are decoded and noted, bad ones are named."""

import numpy as np
import pytest
from image_folders import CHINA
from PIL import Image

from mobilenet_exp.datasets.images import open_file


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("china.jpg", ""),
        ("grey.jpg", "greyscale"),
        ("cmyk.jpg", "CMYK"),
        ("deep.png", "16-bit, greyscale"),
        ("alpha.png", "alpha dropped"),
        ("a_png.jpg", "PNG named .jpg"),
    ],
)
def test_odd_images_are_decoded_and_told(photos, name, note):
    image = open_file(photos / name)
    pixels = image.decode(None)
    assert (image.note, pixels.shape) == (note, (image.height, image.width, 3))
    # the same photo, near enough: 16 bits are scaled, not clipped to white
    grey = np.asarray(Image.fromarray(pixels).convert("L")).astype(float)
    assert abs(grey - np.asarray(Image.open(photos / "grey.jpg"))).mean() < 6


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cut.jpg", "truncated"),
        ("empty.jpg", "the file is empty"),
        ("text.jpg", "not an image"),
    ],
)
def test_bad_images_are_named(photos, name, reason):
    with pytest.raises(OSError, match=f"{name} cannot be decoded: .*{reason}"):
        open_file(photos / name)


@pytest.mark.parametrize("make", [lambda a: a.astype("int32") * 900, lambda a: a / 255])
def test_pixels_of_another_depth_are_refused(tmp_path, make):
    values = make(np.asarray(Image.open(CHINA).convert("L"))).astype("float32")
    kind = "int32" if values.max() > 1 else "float32"
    Image.fromarray(values.astype(kind)).save(tmp_path / "deep.tiff")
    with pytest.raises(OSError, match=f"deep.tiff cannot be decoded: its {kind} pixels are no"):
        open_file(tmp_path / "deep.tiff")


def test_a_plain_bitmap_is_nothing_odd(tmp_path):
    Image.open(CHINA).resize((72, 72)).save(tmp_path / "plain.bmp")
    assert open_file(tmp_path / "plain.bmp").note == ""
