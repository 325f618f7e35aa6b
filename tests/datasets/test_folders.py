"""Every file of a class folder is an image of the set, or is named with a reason."""

import os

import numpy as np
import pytest
from PIL import Image

from mobilenet_exp.config.schema import ImagesConfig
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.datasets.folders import find_classes, list_images
from mobilenet_exp.datasets.images import open_file
from mobilenet_exp.datasets.sets import build_image_set


def _save(path, kind=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, path.name))
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, kind)


def _set(root, split="val", **options):
    return build_image_set(ImagesConfig(name="imagefolder", root=str(root), **options), split)


def test_what_pillow_reads_is_an_image_whatever_its_name(tmp_path):
    kinds = {"a.jpg": "JPEG", "b.gif": "GIF", "c.jfif": "JPEG", "d.avif": "AVIF", "e": "PNG",
             "f.webp": "WEBP", "g.dat": "PNG", "h.JPEG": "JPEG", "i.tif": "TIFF"}  # fmt: skip
    for name, kind in kinds.items():
        _save(tmp_path / "val" / "cat" / name, kind)
    for name in ("notes.txt", "Thumbs.db", "x.heic", "LICENSE", "scan.svg"):
        (tmp_path / "val" / "cat" / name).write_text("no image")
    (tmp_path / "val" / "cat" / "gone").symlink_to("nowhere")
    found = _set(tmp_path)
    assert [found.images.name(i) for i in range(len(kinds))] == [f"cat/{n}" for n in sorted(kinds)]
    notes = [found.images.open(index)[0].note for index in range(len(kinds))]
    assert notes[sorted(kinds).index("g.dat")] == "PNG named .dat"
    assert notes[sorted(kinds).index("e")] == ""
    assert found.images.others == {
        "cat/LICENSE": "not an image",
        "cat/Thumbs.db": "not an image",
        "cat/gone": "a link to a file that is not there",
        "cat/notes.txt": "not an image",
        "cat/scan.svg": "Pillow cannot read .svg files",
        "cat/x.heic": "HEIC photos need `pip install pillow-heif`",
    }


def test_hidden_files_and_folders_are_no_images_and_no_classes(tmp_path):
    for name in ("cat/a.jpg", "dog/deep/er/b.jpg"):
        _save(tmp_path / name)
    hidden = (".ipynb_checkpoints/c.jpg", "cat/.ipynb_checkpoints/a.jpg", "cat/._a.jpg")
    folders = ("__MACOSX/cat/a.jpg", "dog/deep/__MACOSX/._b.jpg", "dog/deep/.DS_Store.jpg")
    for name in (*hidden, *folders):
        _save(tmp_path / name)
    found = _set(tmp_path)
    assert found.classes == ["cat", "dog"]
    names = [found.images.name(index) for index in range(len(found.images))]
    assert names == ["cat/a.jpg", "dog/deep/er/b.jpg"]
    assert found.images.others == {}


def test_links_to_folders_multiply_nothing(tmp_path):
    _save(tmp_path / "data" / "cat" / "a.jpg")
    _save(tmp_path / "elsewhere" / "b.jpg")
    links = {"data/cat/up": "..", "data/cat/self": ".", "data/all": ".", "data/cat/out": "more",
             "data/cat/out2": "more"}  # fmt: skip
    (tmp_path / "more").symlink_to(tmp_path / "elsewhere")
    for name, target in links.items():
        (tmp_path / name).symlink_to(tmp_path / target if target == "more" else target)
    assert find_classes(tmp_path / "data") == ["cat"]
    found = _set(tmp_path / "data")
    # a link to another folder is followed, once
    names = [found.images.name(index) for index in range(len(found.images))]
    assert names == ["cat/a.jpg", "cat/out/b.jpg"]


def test_names_that_are_not_utf8_are_shown_escaped(tmp_path):
    folder = os.fsencode(tmp_path) + b"/k\xf6ln"
    os.mkdir(folder)
    _save(tmp_path / "a.jpg")
    os.rename(tmp_path / "a.jpg", folder + b"/\xff\n.jpg")
    found = _set(tmp_path)
    assert found.classes == [r"k\xf6ln"]
    assert found.images.name(0) == r"k\xf6ln/\xff\n.jpg"
    assert found.images.open(0)[0].decode(None).shape == (30, 40, 3)


def test_a_folder_without_images_is_one_line(tmp_path):
    _save(tmp_path / "cat" / "a.jpg")
    (tmp_path / "dog").mkdir()
    with pytest.raises(InputError, match=r"folders of .* without an image: dog \(empty\); fill or"):
        _set(tmp_path)
    with pytest.raises(InputError, match="has no class folders of images"):
        _set(tmp_path / "dog")


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_photo_on_its_side_is_turned_or_named(tmp_path, orientation):
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:10], upright[:, :5] = (200, 0, 0), (0, 200, 0)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(upright).transpose(Image.Transpose(undo)).save(tmp_path / "p.png", exif=exif)
    turned, stored = (open_file(tmp_path / "p.png", upright=each) for each in (True, False))
    assert (turned.note, stored.note) == ("turned upright", "EXIF orientation ignored")
    assert np.array_equal(turned.decode(None), upright)
    assert (turned.is_sideways, stored.is_sideways) == (False, True)


def test_data_sets_turn_photos_as_asked(tmp_path, compose_config):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "cat" / "p.jpg", exif=exif)
    opened = {mode: _set(tmp_path, exif=mode).images.open(0)[0] for mode in ("apply", "ignore")}
    sizes = {mode: (image.height, image.width) for mode, image in opened.items()}
    assert sizes == {"apply": (60, 40), "ignore": (40, 60)}
    # phones' photos by default; ImageNet's rows as their sources took them
    assert compose_config("data=imagefolder").data.exif == "apply"
    assert compose_config("data=imagenet").data.exif == "ignore"


def test_one_folder_of_classes_is_split_by_class_and_seed(tmp_path):
    for name, count in (("cat", 20), ("dog", 10), ("emu", 2)):
        for index in range(count):
            _save(tmp_path / name / f"{index}.png")

    def split(**options):
        sets = [_set(tmp_path, each, val_share=0.2, **options) for each in ("train", "val")]
        return [{part.images.name(i) for i in range(len(part.images))} for part in sets]

    train, val = split()
    assert (len(train), len(val), train & val) == (25, 7, set())
    assert [sum(name.startswith(each) for name in val) for each in ("cat", "dog", "emu")] == [
        4, 2, 1,
    ]  # fmt: skip
    assert split() == [train, val]
    assert split(val_seed=1)[1] != val
    # another image moves at most itself and one more
    _save(tmp_path / "cat" / "new.png")
    assert len(split()[1] - val) <= 1


def test_a_folder_without_a_split_says_how_to_split_it(tmp_path):
    _save(tmp_path / "cat" / "a.png")
    with pytest.raises(InputError, match=r"no folder train/.*data.val_share=0.2 splits them"):
        _set(tmp_path, "train")
    with pytest.raises(InputError, match="cat has a single image, which cannot be split"):
        _set(tmp_path, "train", val_share=0.5)
    (tmp_path / "cat").rename(tmp_path / "train")
    with pytest.raises(InputError, match=r"no folder val/.*data.root=\S*/train data.val_share=0.2"):
        _set(tmp_path, "val")
    (tmp_path / "val").mkdir()
    _save(tmp_path / "train" / "cat" / "a.png")
    with pytest.raises(InputError, match=r"val_share=0.5: is for .*did you mean \S*/train"):
        _set(tmp_path, "val", val_share=0.5)
    with pytest.raises(InputError, match="val_share=0.5: is only for data=imagefolder"):
        build_image_set(ImagesConfig(name="digits", val_share=0.5), "val")


def test_photos_of_one_folder_are_listed_by_name(tmp_path):
    for name in ("b.jpg", "a.png"):
        _save(tmp_path / name)
    (tmp_path / "c.heic").write_text("x")
    (tmp_path / "folder").mkdir()
    found = list_images(tmp_path)
    assert [path.name for path in found.images] == ["a.png", "b.jpg"]
    assert [path.name for path in found.others] == ["c.heic"]
