"""Two decoders of JPEG files give the same pixels, notes and errors."""

import io
import os

import numpy as np
import pytest
from image_folders import CHINA
from PIL import Image

from mobilenet_exp.datasets import codec, decode
from mobilenet_exp.datasets.codec import Box
from mobilenet_exp.datasets.decode import open_image

pytestmark = pytest.mark.skipif(codec.library() is None, reason="needs nvImageCodec")


def _jpeg(mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    Image.open(CHINA).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta tiff:Orientation="{orientation}"/>'.encode()


ORDINARY = {
    "baseline": _jpeg(),
    "progressive": _jpeg(progressive=True),
    "full colour": _jpeg(subsampling=0),
    "half colour": _jpeg(subsampling=1),
    "grey": _jpeg("L"),
    "rough": _jpeg(quality=5),
    "not to be turned": _jpeg(exif=_exif(1)),
    "rgb": _jpeg(keep_rgb=True),
    "several": _jpeg() + b"\0" * 40,
}
ODD = {
    "cmyk": _jpeg("CMYK"),
    "turned": _jpeg(exif=_exif(6)),
    "turned, after fill bytes": _jpeg(exif=_exif(6)).replace(b"\xff\xe1", b"\xff\xff\xff\xe1", 1),
    "turned by xmp": _jpeg(xmp=_xmp(8)),
    "cut": _jpeg()[:9000],
    "its end cut": _jpeg()[:-2],
    "no pixels": _jpeg()[:400],
    "wrong from the middle": _jpeg()[:9000] + b"\x55" * 3000 + _jpeg()[12000:],
    "a mark where none may be": _jpeg()[:9000] + b"\xff\xd8" + _jpeg()[9002:],
    "with a tail": _jpeg() + b"tail" * 2000,
    "empty": b"",
    "only a start": b"\xff\xd8\xff",
    "text": b"\xff\xd8\xff" + b"no image" * 50 + b"\xff\xd9",
}


def _seen(data: bytes, *, upright: bool, boxes: tuple = (None,)) -> list:
    try:
        image = open_image(data, ".jpg", upright=upright)
        pixels = [image.decode(box).tobytes() for box in boxes]
    except OSError as error:
        return [str(error)]
    return [image.height, image.width, image.note, image.is_sideways, *pixels]


@pytest.fixture
def without(monkeypatch):
    """Call with a function: what it returns where nvImageCodec is not installed."""

    def call(function, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(codec, "library", lambda: None)
            return function(*arguments, **options)

    return call


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("name", [*ORDINARY, *ODD])
def test_pixels_notes_and_errors_are_pillow_s(without, name, upright):
    data = (ORDINARY | ODD)[name]
    assert _seen(data, upright=upright) == without(_seen, data, upright=upright)


@pytest.mark.parametrize("name", ORDINARY)
def test_a_region_is_the_crop_of_the_whole(monkeypatch, name):
    image = open_image(ORDINARY[name], ".jpg")
    whole = image.decode(None)
    # not by Pillow
    monkeypatch.setattr(decode, "_pillow_pixels", None)
    random = np.random.default_rng(0)
    for _ in range(15):
        top, left = random.integers(0, image.height), random.integers(0, image.width)
        height = random.integers(1, image.height - top + 1)
        width = random.integers(1, image.width - left + 1)
        found = image.decode(Box(*map(int, (top, left, height, width))))
        assert np.array_equal(found, whole[top : top + height, left : left + width])


def test_a_decoder_does_not_outlive_a_fork():
    data = ORDINARY["baseline"]
    open_image(data, ".jpg").decode(None)
    child = os.fork()
    if not child:
        is_right = open_image(data, ".jpg").decode(None).shape == (427, 640, 3)
        os._exit(0 if is_right else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_nothing_is_said_about_libraries_that_are_not_there(capfd):
    codec.library.cache_clear()
    for data in ORDINARY.values():
        _seen(data, upright=True, boxes=(Box(0, 0, 9, 9),))
    assert capfd.readouterr() == ("", "")
