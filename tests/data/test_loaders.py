"""Loaders whose order and augmentation follow from the seed."""

import os
import signal

import pytest
import torch
from hard_run import assert_same
from PIL import Image

from mobilenet_exp.config.schema import DataConfig
from mobilenet_exp.core.console import no_progress
from mobilenet_exp.core.errors import RunError
from mobilenet_exp.data import images, workers
from mobilenet_exp.data.loaders import build_loaders
from mobilenet_exp.data.sampler import Key
from mobilenet_exp.training import session
from mobilenet_exp.training.loop import finish_epoch, make_updates


def _data(name: str, **options) -> DataConfig:
    return DataConfig(
        **{"name": name, "batch_size": 4, "resolution": 32, "augment": "none"} | options
    )


def test_imagefolder_sees_every_evaluation_image_once(folder):
    loaders = build_loaders(_data("imagefolder", root=str(folder)), seed=0, workers=0)
    assert [len(labels) for _, labels, _ in loaders.val] == [4, 1]
    assert [len(labels) for _, labels, _ in loaders.train] == [4]
    assert loaders.classes == ["class0", "class1"]


@pytest.mark.parametrize("augment", ["random_resized_crop", "pad_crop_flip", "affine"])
def test_order_and_augmentation_follow_from_seed_and_epoch(folder, augment):
    def epoch(seed, number, workers):
        data = _data("imagefolder", root=str(folder), augment=augment, batch_size=2)
        loaders = build_loaders(data, seed=seed, workers=workers)
        loaders.sampler.set_position(number)
        torch.rand(1)
        return torch.cat([images for images, *_ in loaders.train])

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


def test_a_broken_image_is_named_or_the_next_one_takes_its_place(folder):
    broken = folder / "train" / "class1" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:300])

    def epoch(**options):
        data = _data("imagefolder", root=str(folder), batch_size=7, **options)
        ((images, labels, odd),) = build_loaders(data, seed=0, workers=0).train
        return sorted(image.numpy().tobytes() for image in images), sorted(labels.tolist()), odd

    with pytest.raises(RunError, match=f"{broken} cannot be decoded: .*; to resume, repair the"):
        epoch()
    images, labels, odd = epoch(on_bad_image="skip")
    # no batch gets smaller: class1/3.jpg is there twice
    assert (len(set(images)), labels) == (6, [0, 0, 0, 0, 1, 1, 1])
    (reason,) = odd.left_out.items()
    assert reason[0] == "class1/1.jpg"
    assert "cannot be decoded" in reason[1]
    for path in (folder / "train").rglob("*.jpg"):
        path.write_bytes(b"x")
    with pytest.raises(RunError, match="7 images in a row cannot be read; the first: class0/"):
        epoch(on_bad_image="skip")


def test_workers_change_nothing(quick):
    """Images come from other processes; the weights do not notice."""
    small = ("data.resolution=32", "data.batch_size=8", "data.args.num_images=16")
    words = ("data=fake", *small, "data.augment=affine")
    weights = []
    for number in (0, 2):
        built = session.build_session(quick(*words, f"run.workers={number}"))
        for _ in range(2):
            for _ in make_updates(built, no_progress):
                pass
            finish_epoch(built)
        weights.append(built.model.state_dict())
    assert_same(dict(weights[0]), dict(weights[1]))


def test_a_loading_process_that_dies_names_its_image_and_what_to_do(folder, monkeypatch):
    def read(path, **_):
        if path.endswith("4.jpg"):
            # as a decoder that crashes, or for want of memory
            os.kill(os.getpid(), signal.SIGKILL)
        return images.Picture(Image.new("RGB", (40, 40)))

    monkeypatch.setattr(images, "read_picture", read)
    loaders = build_loaders(_data("imagefolder", root=str(folder)), seed=0, workers=1)
    words = r"a loading process died .*, at class0/4.jpg; .*/dev/shm.* run.workers=0"
    with pytest.raises(RunError, match=words):
        list(loaders.val)


@pytest.mark.parametrize(
    ("cores", "sharing", "asked", "expected"),
    [(16, 1, None, (16, 4)), (128, 8, None, (16, 4)), (2, 8, None, (1, 1)), (16, 2, 6, (6, 1)),
     (16, 1, 0, (0, 0))],
)  # fmt: skip
def test_loading_processes_are_shared_among_the_machine_s_ranks(
    folder, monkeypatch, cores, sharing, asked, expected
):
    monkeypatch.setattr(workers, "_num_cores", lambda: cores)
    data = _data("imagefolder", root=str(folder))
    loaders = build_loaders(data, seed=0, workers=asked, sharing=sharing)
    assert (loaders.train.num_workers, loaders.val.num_workers) == expected
