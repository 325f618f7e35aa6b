"""Feeds whose order and augmentation follow from the seed, whoever reads."""

import gc
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from hard_run import assert_same

from mobilenet_exp.config.schema import DataConfig
from mobilenet_exp.core.console import no_progress
from mobilenet_exp.core.errors import InputError, RunError
from mobilenet_exp.data import threads, workers
from mobilenet_exp.data.loaders import Reading, build_loaders
from mobilenet_exp.data.sampler import Key
from mobilenet_exp.data.workers import num_workers
from mobilenet_exp.datasets import images
from mobilenet_exp.datasets.builders import build_image_set
from mobilenet_exp.training import session
from mobilenet_exp.training.loop import finish_epoch, make_updates

READERS = {
    "none": Reading(workers=0),
    "one thread": Reading(workers=1),
    "threads": Reading(workers=3),
    "processes": Reading(workers=2, loader="processes"),
}


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
    def epoch(seed, number, readers):
        data = _data(
            "imagefolder", root=str(folder), augment=augment, batch_size=2, random_erase=0.5,
            erase_mode="pixel",
        )  # fmt: skip
        loaders = build_loaders(data, seed=seed, reading=READERS[readers])
        loaders.sampler.set_position(number)
        torch.rand(1)
        return torch.cat([images for images, *_ in loaders.train])

    first = epoch(0, 1, "none")
    for readers in ("one thread", "threads", "processes"):
        assert torch.equal(epoch(0, 1, readers), first), readers
    assert not torch.equal(epoch(0, 2, "threads"), first)
    assert not torch.equal(epoch(1, 1, "threads"), first)


def test_policies_are_the_same_in_processes_and_without(folder):
    def epoch(readers):
        data = _data("imagefolder", root=str(folder), auto_augment="ta_wide", random_erase=0.5)
        loaders = build_loaders(data, seed=0, reading=READERS[readers])
        return torch.cat([images for images, *_ in loaders.train]), loaders.readers

    (plain, nobody), (found, readers) = epoch("none"), epoch("threads")
    assert torch.equal(plain, found)
    # training by processes, evaluation by threads
    assert (nobody, readers) == ("", "3 loading processes + 3 loading threads")


@pytest.mark.parametrize(
    ("loader", "count", "readers"),
    [
        ("auto", 4, "4 loading threads"),
        # more would wait for Python's lock
        ("auto", 5, "5 loading processes + 1 loading process"),
        ("threads", 5, "5 loading threads"),
        ("processes", 2, "2 loading processes + 1 loading process"),
    ],
)
def test_who_reads_is_chosen_by_their_number(folder, loader, count, readers):
    data = _data("imagefolder", root=str(folder))
    loaders = build_loaders(data, seed=0, reading=Reading(workers=count, loader=loader))
    assert loaders.readers == readers


def test_threads_are_refused_for_what_draws_globally(folder):
    data = _data("imagefolder", root=str(folder), auto_augment="ta_wide")
    with pytest.raises(InputError, match="run.loader=threads: data.auto_augment draws from"):
        build_loaders(data, seed=0, reading=Reading(workers=2, loader="threads"))


@pytest.mark.parametrize("readers", READERS)
def test_a_pass_that_is_left_or_begun_early_changes_nothing(folder, readers):
    """As when an evaluation takes a few training batches, or the next epoch is begun before it."""
    data = _data("imagefolder", root=str(folder), augment="random_resized_crop", batch_size=2)
    loaders = build_loaders(data, seed=0, reading=READERS[readers])
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
    loaders = build_loaders(data, seed=0, reading=Reading(workers=2))
    assert len(list(loaders.train.first(1))) == 1
    assert len(read) == 2


_opened = images.ImageFiles.open


def test_loading_leaves_the_global_generator_alone(folder):
    for policy in (None, "ta_wide", "rand-m9-n2-mstd0.5"):
        data = _data(
            "imagefolder", root=str(folder), augment="random_resized_crop", auto_augment=policy
        )
        view = build_loaders(data, seed=0).train.view
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        view.read(Key(0, 99, 32), np.empty((32, 32, 3), np.uint8))
        assert torch.equal(torch.rand(3), expected)


def test_threads_leave_torch_s_own_alone(folder):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        loaders = build_loaders(
            _data("imagefolder", root=str(folder)), seed=0, reading=Reading(workers=2)
        )
        list(loaders.val)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_end_with_their_loaders(folder):
    def running():
        return [each for each in threading.enumerate() if each.name.startswith("images-")]

    before = len(running())
    loaders = build_loaders(
        _data("imagefolder", root=str(folder)), seed=0, reading=Reading(workers=2)
    )
    assert len(running()) == before
    list(loaders.val)
    list(loaders.train)
    assert len(running()) == before + 2
    del loaders
    for _ in range(50):
        if len(running()) == before:
            break
        time.sleep(0.1)
    assert len(running()) == before


@pytest.mark.parametrize("readers", READERS)
def test_a_broken_image_is_named_or_the_next_one_takes_its_place(folder, readers):
    broken = folder / "train" / "class1" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:300])

    def epoch(**options):
        data = _data("imagefolder", root=str(folder), batch_size=7, **options)
        ((images, labels, odd),) = build_loaders(data, seed=0, reading=READERS[readers]).train
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


def test_loading_processes_end_with_their_loaders(folder):
    gc.disable()
    try:
        loaders = build_loaders(_data("imagefolder", root=str(folder)), seed=0,
                                reading=READERS["processes"])  # fmt: skip
        list(loaders.train)
        assert multiprocessing.active_children()
        # a cycle would leave them to the garbage collector, which ends them in an order in
        # which each is waited for
        del loaders
        assert not multiprocessing.active_children()
    finally:
        gc.enable()


@pytest.mark.parametrize("readers", ["one thread", "processes"])
def test_an_error_that_is_nobody_s_fault_but_ours_is_not_swallowed(folder, monkeypatch, readers):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(images, "open_image", fail)
    loaders = build_loaders(
        _data("imagefolder", root=str(folder)), seed=0, reading=READERS[readers]
    )
    with pytest.raises(ZeroDivisionError):
        list(loaders.train)


def test_workers_change_nothing(quick):
    """Images come from other threads or processes; the weights do not notice."""
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
    open_image = images.open_image

    def read(data, *options, **more):
        if data == (folder / "train" / "class0" / "4.jpg").read_bytes():
            # as a decoder that crashes, or for want of memory
            os.kill(os.getpid(), signal.SIGKILL)
        return open_image(data, *options, **more)

    monkeypatch.setattr(images, "open_image", read)
    data = _data("imagefolder", root=str(folder), batch_size=7)
    loaders = build_loaders(data, seed=0, reading=Reading(workers=1, loader="processes"))
    words = r"a loading process died .*, at class0/4.jpg; .*/dev/shm.* run.workers=0"
    with pytest.raises(RunError, match=words):
        list(loaders.train)


@pytest.mark.parametrize("readers", ["threads", "processes"])
def test_an_image_that_takes_too_long_is_named(folder, monkeypatch, readers):
    def read(data, *options, **more):
        if data == (folder / "train" / "class0" / "4.jpg").read_bytes():
            time.sleep(5)
        return images.Opened(8, 8, lambda _: torch.zeros(8, 8, 3, dtype=torch.uint8).numpy())

    monkeypatch.setattr(images, "open_image", read)
    monkeypatch.setattr(threads, "LOOK_EVERY", 0.1)
    data = _data("imagefolder", root=str(folder), batch_size=7)
    reading = Reading(workers=2, loader=readers, image_timeout=1)
    loaders = build_loaders(data, seed=0, reading=reading)
    words = r"class0/4.jpg has been read for \d s and is not done; .* run.image_timeout"
    started = time.monotonic()
    with pytest.raises(RunError, match=words):
        list(loaders.train)
    assert time.monotonic() - started < 4


@pytest.mark.parametrize(
    ("cores", "sharing", "asked", "expected"),
    [(6, 1, None, 3), (16, 1, None, 4), (64, 8, None, 4), (2, 1, None, 1), (2, 8, None, 1),
     (16, 2, 6, 6), (16, 1, 0, 0)],
)  # fmt: skip
def test_readers_are_shared_among_the_machine_s_ranks(
    folder, monkeypatch, cores, sharing, asked, expected
):
    monkeypatch.setattr(workers, "_num_cores", lambda: cores)
    data = _data("imagefolder", root=str(folder))
    for loader in ("threads", "processes"):
        reading = Reading(workers=asked, sharing=sharing, loader=loader)
        loaders = build_loaders(data, seed=0, reading=reading)
        assert loaders.train.reader.workers == expected
        quarter = min(expected, max(1, expected // 4))
        assert loaders.val.reader.workers == (expected if loader == "threads" else quarter)


def test_a_gpu_has_all_cores_to_read_for_it(folder, monkeypatch):
    monkeypatch.setattr(workers, "_num_cores", lambda: 16)
    images = build_image_set(_data("imagefolder", root=str(folder)), "train")
    assert num_workers(images, None, 2, torch.device("cuda")) == 8


def test_the_image_that_hangs_is_named_whoever_waits(folder, monkeypatch):
    """The next epoch's first images are read while this one is scored: one of them hangs."""
    open_image = images.open_image

    def read(data, *options, **more):
        if data == (folder / "train" / "class0" / "4.jpg").read_bytes():
            time.sleep(4)
        return open_image(data, *options, **more)

    monkeypatch.setattr(images, "open_image", read)
    monkeypatch.setattr(threads, "LOOK_EVERY", 0.1)
    data = _data("imagefolder", root=str(folder), batch_size=7)
    reading = Reading(workers=1, image_timeout=1)
    loaders = build_loaders(data, seed=0, reading=reading)
    loaders.train.begin()
    # evaluation goes first where nothing is being read yet
    time.sleep(0.5)
    with pytest.raises(RunError, match=r"class0/4.jpg has been read for \d s"):
        list(loaders.val)


def test_a_pipe_is_no_image(folder):
    (folder / "val" / "class0" / "0.jpg").unlink()
    os.mkfifo(folder / "val" / "class0" / "0.jpg")
    loaders = build_loaders(_data("imagefolder", root=str(folder)), seed=0)
    notes = [note for *_, told in loaders.val for note in told]
    assert notes[0] == "cannot be decoded: not a regular file"


def test_memory_that_is_used_again_is_not_in_use(folder):
    """With as many buffers as batches are looked at together, and no more."""
    data = _data("imagefolder", root=str(folder), batch_size=2, augment="random_resized_crop")
    for count in (0, 2):
        own = build_loaders(data, seed=0, accumulate=1, reading=Reading(workers=count))
        expected = [images.clone() for images, *_ in own.train]
        reading = Reading(workers=count, reuses=True)
        shared = build_loaders(data, seed=0, accumulate=1, reading=reading)
        places = set()
        for images_, wanted in zip(shared.train, expected, strict=True):
            time.sleep(0.05)
            assert torch.equal(images_[0], wanted)
            places.add(images_[0].data_ptr())
        assert len(places) <= 1 + count
