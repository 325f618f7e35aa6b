"""Packed sets: what goes in comes out, in the folder's order; what is damaged is named."""

import contextlib
import io
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch
from image_folders import CHINA
from PIL import Image
from programs import run

from mobilenet_exp import compose
from mobilenet_exp.config.schema import DataConfig, ImagesConfig
from mobilenet_exp.core.errors import InputError, RunError
from mobilenet_exp.data.loaders import LoaderOptions, build_loaders
from mobilenet_exp.datasets.codec import Box
from mobilenet_exp.datasets.packed import packing
from mobilenet_exp.datasets.packed.images import open_raw
from mobilenet_exp.datasets.packed.packing import pack
from mobilenet_exp.datasets.packed.shards import Index, is_of
from mobilenet_exp.datasets.sets import build_image_set


def _pack(root, out, *words: str):
    found = compose("data=imagefolder", f"data.root={root}", f"out={out}", *words, program="pack")
    return pack(found)


def _loaders(name: str, root, *, workers: int = 0, **options):
    options = {"batch_size": 2, "resolution": 32} | options
    data = DataConfig(name=name, root=str(root), **options)
    return build_loaders(data, seed=0, options=LoaderOptions(workers=workers))


def _batches(loaders) -> list[torch.Tensor]:
    return [torch.cat([images for images, *_ in feed]) for feed in (loaders.train, loaders.val)]


@pytest.fixture
def packed(folder, tmp_path):
    return _pack(folder, tmp_path / "packed", "shard_images=3")


def test_a_packed_set_is_the_folder_to_the_bit(folder, packed):
    ours, theirs = _loaders("packed", packed), _loaders("imagefolder", folder)
    for found, expected in zip(_batches(ours), _batches(theirs), strict=True):
        assert torch.equal(found, expected)
    assert ours.identity() == theirs.identity()
    assert ours.fingerprint() == theirs.fingerprint()
    names = sorted(path.name for path in packed.iterdir())
    assert names == [
        "packing.json", *(f"train-00000{i}.tar" for i in range(3)), "train.index",
        *(f"val-00000{i}.tar" for i in range(2)), "val.index",
    ]  # fmt: skip
    # WebDataset's convention: an image's files have one key
    with tarfile.open(packed / "train-000001.tar") as tar:
        assert tar.getnames()[:2] == ["000000003.jpg", "000000003.cls"]
        assert tar.extractfile("000000004.cls").read() in (b"0", b"1")


@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_smaller_images_keep_their_shape(folder, tmp_path, form):
    for path in folder.rglob("*.jpg"):
        path.write_bytes(CHINA.read_bytes())
    words = ("quality=95",) if form == "jpeg" else ()
    out = _pack(folder, tmp_path / "small", "side=64", f"form={form}", *words)
    images = _loaders("packed", out).train.images.images
    opened, label = images.open(0)
    assert (opened.height, opened.width, label) == (64, 96, 0)
    box = Box(5, 7, 20, 30)
    assert np.array_equal(opened.decode(box), opened.decode(None)[5:25, 7:37])
    small = Image.open(CHINA).convert("RGB").resize((96, 64), Image.Resampling.BICUBIC)
    difference = np.abs(opened.decode(None).astype(int) - np.asarray(small))
    assert difference.mean() < (0.01 if form == "raw" else 4)


def test_packing_goes_on_where_it_was_cut_off(folder, tmp_path, packed, monkeypatch):
    begun = tmp_path / "begun"
    write = packing._write_shard

    def interrupted(path, *arguments):
        if path.name == "train-000001.tar":
            path.with_name(f"{path.name}.part").write_bytes(b"half")
            raise KeyboardInterrupt
        return write(path, *arguments)

    monkeypatch.setattr(packing, "_write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _pack(folder, begun, "shard_images=3")
    monkeypatch.setattr(packing, "_write_shard", write)
    with pytest.raises(InputError, match="was not packed to the end"):
        _loaders("packed", begun)
    first = (begun / "train-000000.tar").stat().st_mtime_ns
    _pack(folder, begun, "shard_images=3")
    assert (begun / "train-000000.tar").stat().st_mtime_ns == first
    for name in ("train-000001.tar", "train-000002.tar", "val-000001.tar"):
        assert (begun / name).read_bytes() == (packed / name).read_bytes()
    assert not list(begun.glob("*.part*"))
    assert not list(begun.glob("*.tar.index"))
    with pytest.raises(InputError, match="was begun with side=None; name a new folder"):
        _pack(folder, begun, "shard_images=3", "side=64")
    (folder / "train" / "class0" / "0.jpg").unlink()
    with pytest.raises(InputError, match="was begun with other images"):
        _pack(folder, begun, "shard_images=3")
    (begun / "packing.json").write_text("{")
    with pytest.raises(InputError, match=r"packing.json is damaged; name a new folder"):
        _pack(folder, begun, "shard_images=3")
    with pytest.raises(InputError, match="holds something else"):
        _pack(folder, folder)


def test_a_flipped_bit_is_found_and_named(packed):
    index = Index.load(packed / "train.index")
    shard = packed / index.shards[index.shard[4]][0]
    content = bytearray(shard.read_bytes())
    content[index.offset[4] + index.size[4] // 2] ^= 1
    shard.write_bytes(content)
    words = f"{index.names[4]} is damaged: its bytes in {shard.name} are not those that were"
    with pytest.raises(RunError, match=words):
        _batches(_loaders("packed", packed, batch_size=7))
    _batches(_loaders("packed", packed, args={"verify": False}))
    loaders = _loaders("packed", packed, batch_size=7, on_bad_image="skip")
    left_out = {name for *_, batch in loaders.train for name in batch.left_out}
    assert left_out == {index.names[4]}


def test_shards_that_are_not_whole_are_one_line(packed, tmp_path):
    shard = packed / "train-000001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:-600])
    words = r"train-000001.tar has 10,\d+ bytes, where the index says 10,\d+: it was cut short"
    with pytest.raises(InputError, match=words.replace("10", r"\d+")):
        _loaders("packed", packed)
    shard.unlink()
    with pytest.raises(InputError, match="train-000001.tar is missing"):
        _loaders("packed", packed)
    (packed / "train.index").write_bytes(b"no index")
    with pytest.raises(InputError, match="train.index is not an index of shards .*; remove it"):
        _loaders("packed", packed)
    for path in (*packed.glob("*.index"), packed / "packing.json"):
        path.unlink()
    shard.write_bytes(content[:2000])
    with pytest.raises(InputError, match="train-000001.tar: is cut short"):
        _loaders("packed", packed)
    for path in packed.glob("train*"):
        path.unlink()
    with pytest.raises(InputError, match=r"has neither train.index nor shards named \*train"):
        _loaders("packed", packed)


def _write_shard(path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_shards_from_elsewhere_are_indexed_once(folder, packed, tmp_path):
    """As on the Hugging Face hub: other names, a description beside each image, no index."""
    other = tmp_path / "other"
    other.mkdir()
    for split, theirs in (("train", "train"), ("val", "validation")):
        files: dict[str, bytes] = {}
        for label in (0, 1):
            for path in sorted((folder / split / f"class{label}").iterdir()):
                key = f"n0144{label}_{path.stem}"
                files[f"{key}.cls"] = str(label).encode()
                files[f"{key}.jpg"] = path.read_bytes()
                files[f"{key}.json"] = json.dumps({"label": label}).encode()
        _write_shard(other / f"imagenet1k-{theirs}-0000.tar", files)
    ours, theirs = _loaders("packed", other), _loaders("imagefolder", folder)
    assert torch.equal(_batches(ours)[1], _batches(theirs)[1])
    assert ours.classes == ["0", "1"]
    assert (other / "train.index").exists()
    assert len(_loaders("packed", other, args={"classes": "imagenet"}).classes) == 1000
    shutil.copy(other / "imagenet1k-train-0000.tar", other / "imagenet1k-train-0001.tar")
    (other / "train.index").unlink()
    _write_shard(other / "imagenet1k-train-0001.tar", {"a.jpg": b"x", "b.cls": b"1"})
    with pytest.raises(InputError, match=r"not in WebDataset's convention: a.jpg has no a.cls"):
        _loaders("packed", other)


@pytest.mark.parametrize("damage", ["half a header", "at a member", "zeros", "in the middle"])
def test_a_shard_that_is_not_whole_is_not_indexed(packed, damage):
    """Where a reader of tar files would see its end, and nothing wrong."""
    for path in (*packed.glob("*.index"), packed / "packing.json"):
        path.unlink()
    shard = packed / "train-000001.tar"
    content = shard.read_bytes()
    with tarfile.open(shard) as tar:
        second = tar.getmembers()[2].offset
    content = {
        "half a header": content[: second + 100],
        "at a member": content[:second],
        # as a download that made room for all of a larger file
        "zeros": content[:second] + bytes(20_000),
        "in the middle": content[:second] + b"?" * 512 + content[second + 512 :],
    }[damage]
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"train-000001.tar: is cut short or no tar file \(there"):
        _loaders("packed", packed)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"a.jpg": b"x", "a.cls": b"-1"}, "a.cls holds no label, but '-1'"),
        ({"a.jpg": b"x", "a.cls": b"cat"}, "a.cls holds no label, but 'cat'"),
        ({"a.jpg": b"x", "a.png": b"x", "a.cls": b"1"}, "a has two images, .jpg and .png"),
    ],
)
def test_another_convention_is_named(tmp_path, files, problem):
    _write_shard(tmp_path / "train-0.tar", files)
    _write_shard(tmp_path / "val-0.tar", files)
    with pytest.raises(InputError, match=problem):
        _loaders("packed", tmp_path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("imagenet1k-train-0001.tar", "train"), ("train_00.tar", "train"), ("val-1.tar", "val"),
        ("imagenet1k-validation-01.tar", "val"), ("retrieval-train-0.tar", "train"),
        ("interval-0.tar", None), ("train-val-0.tar", None), ("trainval-0.tar", None),
        ("val.txt", None),
    ],
)  # fmt: skip
def test_a_shard_s_split_is_a_word_of_its_name(name, split):
    assert [each for each in ("train", "val") if is_of(name, each)] == ([split] if split else [])


def test_raw_pixels_of_another_kind_are_refused():
    file = io.BytesIO()
    np.save(file, np.zeros((4, 4, 3), np.float32))
    columns = io.BytesIO()
    np.save(columns, np.asfortranarray(np.zeros((4, 5, 3), np.uint8)))
    for data in (file.getvalue(), columns.getvalue(), b"no array", b""):
        with pytest.raises(OSError, match=r"not an array"):
            open_raw(data)


def test_the_command_says_what_is_wrong(folder, tmp_path):
    def refused(*words: str) -> str:
        done = run(tmp_path, "mobilenet_exp/__main__.py", "pack", *words)
        assert done.returncode == 2
        return done.stderr

    common = ("data=imagefolder", f"data.root={folder}")
    assert "out=???: must be given" in refused(*common)
    line = refused(*common, f"out={tmp_path / 'o'}", "data.resolution=64")
    assert "data.resolution=64: belongs to the command that reads the packed set" in line
    assert "data=digits: is no set of files" in refused("data=digits", f"out={tmp_path / 'o'}")
    done = run(tmp_path, "mobilenet_exp/__main__.py", "pack", *common, f"out={tmp_path / 'o'}")
    assert done.returncode == 0, done.stderr
    assert f"data=packed data.root={tmp_path / 'o'}" in done.stdout


def test_packed_imagenet_is_imagenet(packed):
    named = DataConfig(name="packed", root=str(packed), args={"classes": "imagenet"})
    assert named.is_imagenet
    assert not DataConfig(name="packed", root=str(packed)).is_imagenet
    assert not DataConfig(name="imagefolder", args={"classes": "imagenet"}).is_imagenet


def _index(folder) -> Index:
    with contextlib.suppress(FileNotFoundError):
        (folder / "val.index").unlink()
    images = build_image_set(ImagesConfig(name="packed", root=str(folder)), "val").images
    return images.index


def test_every_member_of_a_shard_is_an_image_belongs_to_one_or_is_named(tmp_path):
    """Links, dots in names, folders, what belongs to no image, a sparse file."""
    files = {"d/1.jpg": b"one", "d/1.cls": b"1", "d/1.json": b"{}", "d/1.mask.png": b"m"}
    files |= {"d/IMG.01.jpg": b"dots", "d/IMG.01.cls": b"0", "README": b"x", "d/9.txt": b"y"}
    path = tmp_path / "val-0.tar"
    _write_shard(path, files)
    with tarfile.open(path, "a") as tar:
        for name, target, kind in (
            ("d/2.jpg", "d/1.jpg", tarfile.LNKTYPE), ("d/2.cls", "d/IMG.01.cls", tarfile.LNKTYPE),
            ("d/3.jpg", "IMG.01.jpg", tarfile.SYMTYPE), ("d/3.cls", "1.cls", tarfile.SYMTYPE),
            ("d/4.jpg", "nowhere.jpg", tarfile.SYMTYPE), ("d/pipe", "", tarfile.FIFOTYPE),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    index = _index(tmp_path)
    content = path.read_bytes()
    found = {
        name: (content[offset : offset + size], label)
        for name, offset, size, label in zip(
            index.names, index.offset, index.size, index.label.tolist(), strict=True
        )
    }
    assert found == {
        "d/1.jpg": (b"one", 1), "d/IMG.01.jpg": (b"dots", 0),
        "d/2.jpg": (b"one", 0), "d/3.jpg": (b"dots", 1),
    }  # fmt: skip
    assert index.others == {
        "val-0.tar/README": "belongs to no image",
        "val-0.tar/d/9.txt": "belongs to no image",
        "val-0.tar/d/4.jpg": "a link to d/nowhere.jpg, which is not before it in the shard",
        "val-0.tar/d/pipe": "not a regular file",
    }
    images = build_image_set(ImagesConfig(name="packed", root=str(tmp_path)), "val").images
    assert images.others == index.others


def test_an_index_of_other_shards_is_made_anew_or_refused(tmp_path, packed, capsys):
    """Labels were corrected, in a file of the same length; a shard was added; one was removed."""
    shards = [tmp_path / f"val-{number}.tar" for number in (0, 1)]
    _write_shard(shards[0], {"a.jpg": b"x", "a.cls": b"1"})
    assert _index(tmp_path).label.tolist() == [1]

    def labels() -> list[int]:
        data = ImagesConfig(name="packed", root=str(tmp_path))
        return build_image_set(data, "val").images.labels.tolist()

    before = (tmp_path / "val.index").stat().st_mtime_ns
    assert labels() == [1]
    assert (tmp_path / "val.index").stat().st_mtime_ns == before
    _write_shard(shards[0], {"a.jpg": b"x", "a.cls": b"2"})
    assert labels() == [2]
    assert "val.index: made anew, as val-0.tar has changed" in capsys.readouterr().out
    _write_shard(shards[1], {"b.jpg": b"x", "b.cls": b"0"})
    assert labels() == [2, 0]
    assert "val.index: made anew, as val-1.tar is there now" in capsys.readouterr().out
    shards[0].unlink()
    assert labels() == [0]
    assert "val.index: made anew, as val-0.tar is gone" in capsys.readouterr().out
    # a set that was packed here has checksums, and is copied with new times
    for each in packed.iterdir():
        os.utime(each)
    _loaders("packed", packed)
    shutil.copy(packed / "train-000000.tar", packed / "train-000009.tar")
    words = "train-000009.tar is not in train.index, which was packed without it; remove"
    with pytest.raises(InputError, match=words):
        _loaders("packed", packed)


def test_a_split_may_lack_the_last_label(tmp_path):
    for name, labels in (("train-0.tar", "0120"), ("val-0.tar", "01")):
        files = {}
        for number, label in enumerate(labels):
            files |= {f"{number}.jpg": CHINA.read_bytes(), f"{number}.cls": label.encode()}
        _write_shard(tmp_path / name, files)
    assert _loaders("packed", tmp_path).classes == ["0", "1", "2"]


def test_exif_of_packed_imagenet_is_ignored_as_from_its_folder(packed):
    common = ("data=packed", f"data.root={packed}")
    assert compose(*common).data.exif == "apply"
    assert compose(*common, "data.args.classes=imagenet").data.exif == "ignore"
    assert compose(*common, "data.args.classes=imagenet", "data.exif=apply").data.exif == "apply"
    words = ("model=v2", "weights=x", *common, "data.args.classes=imagenet")
    assert compose(*words, program="eval").data.exif == "ignore"
