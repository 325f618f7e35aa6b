"""Data sets by name, and what is missing from them."""

import pytest
import torch

from mobilenet_exp.config.schema import DataConfig
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data.loaders import build_loaders


def _data(name: str, **options) -> DataConfig:
    return DataConfig(
        **{"name": name, "batch_size": 4, "resolution": 32, "augment": "none"} | options
    )


def test_digits_are_all_there_and_a_fifth_of_each_class_is_held_out():
    loaders = build_loaders(_data("digits", batch_size=500), seed=0)
    train, val = loaders.train.images, loaders.val.images
    assert (len(loaders.train_images), len(loaders.val_images)) == (1437, 360)
    labels = torch.cat([labels for _, labels, _ in loaders.val])
    assert labels.bincount().min() >= 34
    seen = {image.numpy().tobytes() for image, _ in train.images}
    # a few digits are identical in the set itself; leaking the split would share 360
    assert sum(image.numpy().tobytes() in seen for image, _ in val.images) < 5


def test_digits_are_shown_as_the_originals(compose_config):
    from sklearn.datasets import load_digits

    config = compose_config("data.resolution=64", "data.augment=none").data
    loaders = build_loaders(config, seed=0)
    (image, *_), (label, *_), _ = next(iter(loaders.val))
    image = image * config.std[0] + config.mean[0]
    small = torch.nn.functional.adaptive_avg_pool2d(image, 8)[0] * 16
    originals = torch.tensor(load_digits().images, dtype=torch.float32)
    nearest = (originals - small).flatten(1).norm(dim=1).argmin()
    assert load_digits().target[nearest] == label


def test_fake_data_has_the_asked_size():
    data = _data("fake", args={"num_images": 10, "num_classes": 3}, crop_pct=1.0)
    loaders = build_loaders(data, seed=0)
    images, labels, _ = next(iter(loaders.val))
    assert images.shape == (4, 3, 32, 32)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert len(loaders.classes) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "imagefolder"}, "data.root=null: must be given"),
        (
            {"name": "imagefolder", "root": "nowhere"},
            "has no folder train/; it must hold",
        ),
        ({"name": "cifar10", "root": "nowhere"}, "data.download=true downloads it"),
        ({"name": "fake", "args": {"foo": 1}}, "data.args.foo=1: not an option of fake; allowed:"),
        ({"name": "digits", "args": {"foo": 1}}, "data.args.foo=1: not an option of digits"),
        ({"name": "cifar10"}, "data.root=null: must be given: the folder of CIFAR-10"),
        (
            {"name": "digits", "batch_size": 1},
            "each accumulation part needs at least 2",
        ),
        ({"name": "fake"}, "data.args.num_images=???: must be given for fake"),
        ({"name": "mnist"}, "data.name=mnist: not known; allowed: digits"),
        ({"name": "digits", "augment": "zoom"}, "data.augment=zoom: not known; allowed:"),
    ],
)
def test_missing_files_and_unknown_names_are_refused(options, message):
    with pytest.raises(InputError) as caught:
        build_loaders(_data(**options), seed=0)
    assert message in str(caught.value)


def test_splits_of_other_classes_are_refused(folder):
    (folder / "val" / "class1").rename(folder / "val" / "class9")
    with pytest.raises(InputError, match="only one of them has class1, class9"):
        build_loaders(_data("imagefolder", root=str(folder)), seed=0)


def test_imagenet_needs_a_thousand_classes(folder):
    with pytest.raises(InputError, match="1000 classes, has 2, and class0 is not one"):
        build_loaders(_data("imagenet", root=str(folder)), seed=0)


def test_empty_class_folder_is_named(folder):
    (folder / "train" / "class7").mkdir()
    with pytest.raises(InputError, match="class7"):
        build_loaders(_data("imagefolder", root=str(folder)), seed=0)
