"""Loaders whose order and augmentation follow from the seed."""

import os
import signal

import pytest
import torch
from hard_run import assert_same

from mobilenet_exp.config.schema import DataConfig
from mobilenet_exp.core.console import no_progress
from mobilenet_exp.core.errors import RunError
from mobilenet_exp.data.loaders import build_loaders
from mobilenet_exp.data.sampler import Key
from mobilenet_exp.data.workers import Loader
from mobilenet_exp.training import session
from mobilenet_exp.training.loop import finish_epoch, make_updates


def _data(name: str, **options) -> DataConfig:
    return DataConfig(
        **{"name": name, "batch_size": 4, "resolution": 32, "augment": "none"} | options
    )


def test_imagefolder_sees_every_evaluation_image_once(folder):
    loaders = build_loaders(_data("imagefolder", root=str(folder)), seed=0, workers=0)
    assert [len(labels) for _, labels in loaders.val] == [4, 1]
    assert [len(labels) for _, labels in loaders.train] == [4]
    assert loaders.classes == ["class0", "class1"]


@pytest.mark.parametrize("augment", ["random_resized_crop", "pad_crop_flip", "affine"])
def test_order_and_augmentation_follow_from_seed_and_epoch(folder, augment):
    def epoch(seed, number, workers):
        data = _data("imagefolder", root=str(folder), augment=augment, batch_size=2)
        loaders = build_loaders(data, seed=seed, workers=workers)
        loaders.sampler.set_position(number)
        torch.rand(1)
        return torch.cat([images for images, _ in loaders.train])

    first = epoch(0, 1, workers=0)
    assert torch.equal(epoch(0, 1, workers=2), first)
    assert not torch.equal(epoch(0, 2, workers=0), first)
    assert not torch.equal(epoch(1, 1, workers=0), first)


def test_loading_leaves_the_global_generator_alone(folder):
    data = _data("imagefolder", root=str(folder), augment="random_resized_crop")
    view = build_loaders(data, seed=0, workers=0).train.dataset
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    view[Key(0, 99, 32)]
    assert torch.equal(torch.rand(3), expected)


def test_hidden_folders_are_no_classes_and_a_broken_image_is_named(folder):
    (folder / "train" / ".cache").mkdir()
    broken = next((folder / "val").rglob("*.jpg"))
    broken.write_bytes(broken.read_bytes()[:300])
    loaders = build_loaders(_data("imagefolder", root=str(folder)), seed=0, workers=0)
    assert loaders.classes == ["class0", "class1"]
    with pytest.raises(RunError, match=f"{broken} cannot be decoded: .*; repair or remove"):
        list(loaders.val)


def test_workers_change_nothing(quick):
    """Images come from other processes; the weights do not notice."""
    small = ("data.resolution=32", "data.batch_size=8", "data.args.num_images=16")
    words = ("data=fake", *small, "data.augment=affine")
    weights = []
    for workers in (0, 2):
        built = session.build_session(quick(*words, f"run.workers={workers}"))
        for _ in range(2):
            for _ in make_updates(built, no_progress):
                pass
            finish_epoch(built)
        weights.append(built.model.state_dict())
    assert_same(dict(weights[0]), dict(weights[1]))


class _Dying(torch.utils.data.Dataset):
    """Its loading process is killed, as for want of memory."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_loading_process_that_dies_is_one_line_that_says_what_to_do():
    with pytest.raises(RunError, match=r"a loading process died .*/dev/shm.* run.workers=0"):
        list(Loader(_Dying(), batch_size=2, num_workers=1))
