"""Loaders whose order and augmentation follow from the seed, however many processes read."""

import gc
import multiprocessing
import os
import signal
import time

import pytest
import torch
from hard_run import assert_same

from mobilenet_exp.config.schema import DataConfig
from mobilenet_exp.core.console import no_progress
from mobilenet_exp.core.errors import RunError
from mobilenet_exp.data.augment import Normaliser
from mobilenet_exp.data.loaders import LoaderOptions, build_loaders, num_workers
from mobilenet_exp.data.sampler import Key
from mobilenet_exp.datasets import images
from mobilenet_exp.datasets.sets import build_image_set
from mobilenet_exp.training.train import build_state, finish_epoch, make_updates

OPTIONS = {count: LoaderOptions(workers=count) for count in (0, 1, 2)}


def _data(name: str, **options) -> DataConfig:
    return DataConfig(
        **{"name": name, "batch_size": 4, "resolution": 32, "augment": "none"} | options
    )


def test_imagefolder_sees_every_evaluation_image_once(folder):
    loaders = build_loaders(_data("imagefolder", root=str(folder)), seed=0)
    assert [len(labels) for _, labels, _ in loaders.val] == [4, 1]
    assert [len(labels) for _, labels, _ in loaders.train] == [4]
    assert loaders.classes == ["class0", "class1"]


@pytest.mark.parametrize("augment", ["random_resized_crop", "inception", "pad_crop_flip", "affine"])
def test_order_and_augmentation_follow_from_seed_and_epoch(folder, augment):
    def epoch(seed, number, workers):
        data = _data(
            "imagefolder", root=str(folder), augment=augment, batch_size=2, random_erase=0.5,
            erase_mode="pixel",
        )  # fmt: skip
        loaders = build_loaders(data, seed=seed, options=OPTIONS[workers])
        loaders.sampler.set_position(number)
        torch.rand(1)
        return torch.cat([images for images, *_ in loaders.train])

    first = epoch(0, 1, 0)
    for workers in (1, 2):
        assert torch.equal(epoch(0, 1, workers), first), workers
    assert not torch.equal(epoch(0, 2, 0), first)
    assert not torch.equal(epoch(1, 1, 0), first)


def test_policies_are_the_same_in_processes_and_without(folder):
    def epoch(workers):
        data = _data("imagefolder", root=str(folder), auto_augment="ta_wide", random_erase=0.5)
        loaders = build_loaders(data, seed=0, options=OPTIONS[workers])
        return torch.cat([images for images, *_ in loaders.train]), loaders.train.workers

    (plain, nobody), (found, who) = epoch(0), epoch(2)
    assert torch.equal(plain, found)
    assert (nobody, who) == (0, 2)


@pytest.mark.parametrize("workers", OPTIONS)
def test_a_pass_that_is_left_or_begun_early_changes_nothing(folder, workers):
    """As when an evaluation takes a few training batches, or the next epoch is begun before it."""
    data = _data("imagefolder", root=str(folder), augment="random_resized_crop", batch_size=2)
    loaders = build_loaders(data, seed=0, options=OPTIONS[workers])
    whole = {}
    for epoch in (1, 2):
        loaders.sampler.set_position(epoch)
        whole[epoch] = torch.cat([images for images, *_ in loaders.train])
    loaders.sampler.set_position(1)
    (first,) = loaders.train.first(1)
    assert torch.equal(first[0], whole[1][:2])
    next(iter(loaders.train))
    loaders.sampler.set_position(2)
    loaders.train.begin()
    list(loaders.val)
    assert torch.equal(torch.cat([images for images, *_ in loaders.train]), whole[2])
    loaders.train.begin()
    # somewhere else than it was begun: as after a rollback
    loaders.sampler.set_position(1, 1)
    assert torch.equal(torch.cat([images for images, *_ in loaders.train]), whole[1][2:])


def test_only_the_batches_that_are_asked_for_are_read(folder, monkeypatch):
    read = []
    monkeypatch.setattr(
        images.ImageFiles, "open", lambda self, index: read.append(index) or _opened(self, index)
    )
    data = _data("imagefolder", root=str(folder), batch_size=2)
    loaders = build_loaders(data, seed=0, options=OPTIONS[0])
    assert len(list(loaders.train.first(1))) == 1
    assert len(read) == 2


_opened = images.ImageFiles.open


def test_loading_leaves_the_global_generator_alone(folder):
    for policy in (None, "ta_wide", "rand-m9-n2-mstd0.5"):
        data = _data(
            "imagefolder", root=str(folder), augment="random_resized_crop", auto_augment=policy
        )
        images = build_loaders(data, seed=0).train.images
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        images[[Key(0, 99, 32)]]
        assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", OPTIONS)
def test_a_broken_image_is_named_or_the_next_one_takes_its_place(folder, workers):
    broken = folder / "train" / "class1" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:300])

    def epoch(**options):
        data = _data("imagefolder", root=str(folder), batch_size=7, **options)
        ((images, labels, batch),) = build_loaders(data, seed=0, options=OPTIONS[workers]).train
        return sorted(image.numpy().tobytes() for image in images), sorted(labels.tolist()), batch

    with pytest.raises(RunError, match=f"{broken} cannot be decoded: .*; to resume, repair the"):
        epoch()
    images, labels, batch = epoch(on_bad_image="skip")
    # no batch gets smaller: class1/3.jpg is there twice
    assert (len(set(images)), labels) == (6, [0, 0, 0, 0, 1, 1, 1])
    (reason,) = batch.left_out.items()
    assert reason[0] == "class1/1.jpg"
    assert "cannot be decoded" in reason[1]
    for path in (folder / "train").rglob("*.jpg"):
        path.write_bytes(b"x")
    with pytest.raises(RunError, match="7 images in a row cannot be read; the first: class0/"):
        epoch(on_bad_image="skip")


def test_loading_processes_end_with_their_loaders(folder):
    before = set(multiprocessing.active_children())
    gc.disable()
    try:
        loaders = build_loaders(_data("imagefolder", root=str(folder)), seed=0,
                                options=OPTIONS[2])  # fmt: skip
        list(loaders.train)
        assert set(multiprocessing.active_children()) - before
        # a cycle would leave them to the garbage collector, which ends them in an order in
        # which each is waited for
        del loaders
        assert not set(multiprocessing.active_children()) - before
    finally:
        gc.enable()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_that_is_nobody_s_fault_but_ours_is_not_swallowed(folder, monkeypatch, workers):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(images, "open_image", fail)
    loaders = build_loaders(
        _data("imagefolder", root=str(folder)), seed=0, options=OPTIONS[workers]
    )
    with pytest.raises(ZeroDivisionError):
        list(loaders.train)


def test_workers_change_nothing(quick):
    """Images come from other threads or processes; the weights do not notice."""
    small = ("data.resolution=32", "data.batch_size=8", "data.args.num_images=16")
    words = ("data=fake", *small, "data.augment=affine")
    weights = []
    for number in (0, 2):
        built = build_state(quick(*words, f"run.workers={number}"))
        for _ in range(2):
            for _ in make_updates(built, no_progress):
                pass
            finish_epoch(built)
        weights.append(built.model.state_dict())
    assert_same(dict(weights[0]), dict(weights[1]))


def test_a_loading_process_that_dies_names_its_image_and_what_to_do(folder, monkeypatch):
    open_image = images.open_image

    def read(data, *options, **more):
        if data == (folder / "train" / "class0" / "4.jpg").read_bytes():
            # as a decoder that crashes, or for want of memory
            os.kill(os.getpid(), signal.SIGKILL)
        return open_image(data, *options, **more)

    monkeypatch.setattr(images, "open_image", read)
    data = _data("imagefolder", root=str(folder), batch_size=7)
    loaders = build_loaders(data, seed=0, options=OPTIONS[1])
    words = r"a loading process died .*, at class0/4.jpg; .*/dev/shm.* run.workers=0"
    with pytest.raises(RunError, match=words):
        list(loaders.train)


def test_an_image_that_takes_too_long_is_named(folder, monkeypatch):
    def read(data, *options, **more):
        if data == (folder / "train" / "class0" / "4.jpg").read_bytes():
            time.sleep(5)
        return images.Opened(8, 8, lambda _: torch.zeros(8, 8, 3, dtype=torch.uint8).numpy())

    monkeypatch.setattr(images, "open_image", read)
    data = _data("imagefolder", root=str(folder), batch_size=7)
    options = LoaderOptions(workers=2, image_timeout=1)
    loaders = build_loaders(data, seed=0, options=options)
    words = r"class0/4.jpg has been read for \d s and is not done; .* run.image_timeout"
    started = time.monotonic()
    with pytest.raises(RunError, match=words):
        list(loaders.train)
    assert time.monotonic() - started < 4


@pytest.mark.parametrize(
    ("cores", "ranks", "asked", "expected"),
    [(6, 1, None, 3), (16, 1, None, 4), (64, 8, None, 4), (2, 1, None, 1), (2, 8, None, 1),
     (16, 2, 6, 6), (16, 1, 0, 0)],
)  # fmt: skip
def test_workers_are_divided_among_the_machine_s_ranks(
    folder, monkeypatch, cores, ranks, asked, expected
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    options = LoaderOptions(workers=asked, ranks_on_machine=ranks)
    loaders = build_loaders(_data("imagefolder", root=str(folder)), seed=0, options=options)
    assert loaders.train.workers == expected
    assert loaders.val.workers == min(expected, max(1, expected // 4))


def test_a_gpu_has_all_cores_to_read_for_it(folder, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    options = LoaderOptions(torch.device("cuda"), ranks_on_machine=2)
    for data in (_data("imagefolder", root=str(folder)), _data("digits")):
        assert num_workers(build_image_set(data, "train"), options) == 8
    # beside a CPU, what is in memory takes no process
    assert num_workers(build_image_set(_data("digits"), "train"), LoaderOptions()) == 0


def test_workers_are_started_once(folder):
    loaders = build_loaders(_data("imagefolder", root=str(folder)), seed=0, options=OPTIONS[2])
    before = set(multiprocessing.active_children())
    loaders.train.start_workers()
    loaders.val.start_workers()
    started = set(multiprocessing.active_children()) - before
    assert len(started) == 3
    for epoch in (1, 2):
        loaders.sampler.set_position(epoch)
        assert len(list(loaders.train)) == len(loaders.train)
        assert len(list(loaders.val)) == len(loaders.val)
    assert set(multiprocessing.active_children()) - before == started


def test_a_pipe_is_no_image(folder):
    (folder / "val" / "class0" / "0.jpg").unlink()
    os.mkfifo(folder / "val" / "class0" / "0.jpg")
    loaders = build_loaders(_data("imagefolder", root=str(folder)), seed=0)
    notes = [note for *_, batch in loaders.val for note in batch.notes]
    assert notes[0] == "cannot be decoded: not a regular file"


class _Slow(Normaliser):
    """Looks at pixels when the workers have read as far ahead as they may."""

    def __call__(self, pixels, erasures=None):
        time.sleep(0.02)
        return super().__call__(pixels, erasures)


@pytest.mark.parametrize("workers", [1, 2])
def test_shared_memory_is_not_written_over_before_it_is_read(workers):
    data = _data("fake", args={"num_images": 48, "num_classes": 3}, augment="random_resized_crop")
    expected = [images for images, *_ in build_loaders(data, seed=0, options=OPTIONS[0]).train]
    loaders = build_loaders(data, seed=0, options=OPTIONS[workers])
    loaders.train.normaliser = _Slow(data.mean, data.std, torch.device("cpu"))
    found = [images for images, *_ in loaders.train]
    assert len(found) == 12
    assert all(map(torch.equal, found, expected))
