"""Well-known data sets, on miniatures in the layouts that their authors publish."""

import gzip
import json
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from mobilenet_exp import compose
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data.loaders import LoaderOptions, build_loaders
from mobilenet_exp.datasets.images import ImageFiles
from mobilenet_exp.datasets.torchvision_sets import TORCHVISION_SETS

IN_MEMORY = ("cifar10", "cifar100", "svhn", "fashion_mnist")
RANDOM = np.random.default_rng(0)


def _photo(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(path, "JPEG")


def _imagenette(root) -> None:
    for wnid in datasets.Imagenette._WNID_TO_CLASS:
        for split in ("train", "val"):
            _photo(root / "imagenette2" / split / wnid / f"{wnid}_1.JPEG")


def _flowers(root) -> None:
    for number in range(1, 205):
        _photo(root / "flowers-102" / "jpg" / f"image_{number:05d}.jpg")
    folder = root / "flowers-102"
    savemat(folder / "imagelabels.mat", {"labels": np.arange(204) % 102 + 1})
    ids = {"trnid": np.arange(1, 60), "valid": np.arange(60, 110), "tstid": np.arange(110, 205)}
    savemat(folder / "setid.mat", ids)


def _pets(root) -> None:
    folder = root / "oxford-iiit-pet"
    lines = [f"Abyssinian_{i} 1 1 1" for i in range(4)] + [
        f"great_dane_{i} 2 2 1" for i in range(4)
    ]
    for line in lines:
        _photo(folder / "images" / f"{line.split()[0]}.jpg")
    (folder / "annotations").mkdir()
    for split in ("trainval", "test"):
        (folder / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")


def _food(root) -> None:
    named = {name: [f"{name}/{i}" for i in range(3)] for name in ("waffles", "apple_pie")}
    for files in named.values():
        for file in files:
            _photo(root / "food-101" / "images" / f"{file}.jpg")
    (root / "food-101" / "meta").mkdir()
    for split in ("train", "test"):
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(named))


def _cifar(root, folder: str, key: str, names: dict) -> None:
    place = root / folder
    place.mkdir(parents=True)
    batch = {"data": RANDOM.integers(0, 256, (6, 3072), dtype=np.uint8), key: [0, 1, 2, 3, 4, 5]}
    for name in ("train", "test", *(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (place / name).write_bytes(pickle.dumps(batch))
    for name in ("meta", "batches.meta"):
        (place / name).write_bytes(pickle.dumps(names))


def _svhn(root) -> None:
    root.mkdir(parents=True)
    for split in ("train", "test"):
        pixels = RANDOM.integers(0, 256, (32, 32, 3, 6), dtype=np.uint8)
        savemat(root / f"{split}_32x32.mat", {"X": pixels, "y": np.arange(1, 7)[:, None] + 4})


def _fashion(root) -> None:
    place = root / "FashionMNIST" / "raw"
    place.mkdir(parents=True)
    for split in ("train", "t10k"):
        images = RANDOM.integers(0, 256, (6, 28, 28), dtype=np.uint8)
        head = b"\0\0\x08\x03" + b"".join(int(n).to_bytes(4, "big") for n in images.shape)
        (place / f"{split}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        labels = bytes(range(6))
        head = b"\0\0\x08\x01" + (6).to_bytes(4, "big")
        (place / f"{split}-labels-idx1-ubyte").write_bytes(head + labels)
        with gzip.open(place / f"{split}-images-idx3-ubyte.gz", "wb") as file:
            file.write(b"")


MINIATURES = {
    "cifar10": lambda root: _cifar(
        root, "cifar-10-batches-py", "labels", {"label_names": [f"c{i}" for i in range(10)]}
    ),
    "cifar100": lambda root: _cifar(
        root, "cifar-100-python", "fine_labels", {"fine_label_names": [f"c{i}" for i in range(100)]}
    ),
    "svhn": _svhn,
    "fashion_mnist": _fashion,
    "imagenette": _imagenette,
    "flowers102": _flowers,
    "oxford_pets": _pets,
    "food101": _food,
}
# classes, images to train on and to evaluate, label of the first one of each
EXPECTED = {
    "cifar10": (10, 30, 6),
    "cifar100": (100, 6, 6),
    "svhn": (10, 6, 6),
    "fashion_mnist": (10, 6, 6),
    "imagenette": (10, 10, 10),
    "flowers102": (102, 109, 95),
    "oxford_pets": (2, 8, 8),
    "food101": (2, 6, 6),
}


@pytest.fixture
def unchecked(monkeypatch):
    """Miniatures have other checksums than the published files."""
    for module in (datasets.cifar, datasets.flowers102, datasets.svhn, datasets.mnist):
        monkeypatch.setattr(module, "check_integrity", lambda path, *_: os.path.exists(path))


def test_every_published_set_has_a_miniature():
    assert set(TORCHVISION_SETS) == set(MINIATURES) == set(EXPECTED)


@pytest.mark.parametrize("name", MINIATURES)
def test_a_set_is_read_from_its_own_layout(name, tmp_path, unchecked):
    MINIATURES[name](tmp_path / "set")
    data = compose(f"data={name}", f"data.root={tmp_path}/set", "data.batch_size=4").data
    loaders = build_loaders(data, seed=0, options=LoaderOptions(workers=1))
    found = (len(loaders.classes), len(loaders.train_images), len(loaders.val_images))
    assert found == EXPECTED[name]
    images, labels, batch = next(iter(loaders.val))
    side = data.resolution
    assert (images.shape, images.dtype) == ((4, 3, side, side), torch.float32)
    assert set(batch.notes) == {""}
    # files go the way of files, whatever library found them
    assert isinstance(loaders.val_images, ImageFiles) == (name not in IN_MEMORY)
    published = TORCHVISION_SETS[name]
    word = "train" if published.val == (False,) else "split"
    theirs = published.build(str(tmp_path / "set"), **{word: published.val[0]})
    assert labels.tolist() == [theirs[index][1] for index in range(4)]


@pytest.mark.parametrize("name", MINIATURES)
def test_a_set_that_is_not_there_is_one_line(name, tmp_path):
    data = compose(f"data={name}", f"data.root={tmp_path}", "data.batch_size=4").data
    with pytest.raises(InputError, match="is not there; data.download=true downloads it"):
        build_loaders(data, seed=0)


def test_classes_have_names(tmp_path, unchecked):
    firsts = {"imagenette": "tench", "oxford_pets": "Abyssinian", "food101": "apple_pie"}
    for name, first in firsts.items():
        MINIATURES[name](tmp_path / name)
        data = compose(f"data={name}", f"data.root={tmp_path / name}", "data.batch_size=4").data
        assert build_loaders(data, seed=0).classes[0] == first
