"""Nothing is lost: real processes are killed at random moments, and end in the same bits."""

import contextlib
import os
import random
import subprocess
import time
from functools import partial

import pytest
from hard_run import (
    WORDS,
    assert_same,
    finish,
    kill,
    rows,
    start,
    state,
    wait_for,
)
from image_folders import write_classes

from mobilenet_exp import compose, train
from mobilenet_exp.config.identity import run_name
from mobilenet_exp.datasets.packed.packing import pack
from mobilenet_exp.training import train as training

# the nightly form: KILLS=20
KILLS = int(os.environ.get("KILLS", "3"))


@pytest.mark.parametrize(("images", "kills"), [("noise", KILLS), ("packed", KILLS // 3)])
def test_a_run_killed_at_random_moments_ends_in_the_same_bits(tmp_path, capsys, images, kills):
    """Killed by SIGKILL, anywhere, as often as asked: weights, optimizer, average, metrics.

    Its images are noise that is augmented, or those of a packed set.
    """
    words = (*WORDS, f"train.epochs={6 + 2 * kills}", "run.workers=2")
    if images == "packed":
        write_classes(tmp_path / "images", {"train": 80, "val": 8})
        places = (f"data.root={tmp_path}/images", f"out={tmp_path}/packed", "shard_images=50")
        pack(compose("data=imagefolder", *places, program="pack"))
        words = tuple(word for word in words if not word.startswith(("data=", "data.a")))
        packed = ("data=packed", f"data.root={tmp_path}/packed")
        words = (*words, *packed, "data.augment=random_resized_crop")
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = finish(tmp_path / "whole", *words, "run.save_every_minutes=null")
    # ten in each epoch
    updates = 10 * (6 + 2 * kills)
    draw = random.Random(time.time_ns())
    moments, last = [], tmp_path / "cut" / "none"
    # once more, soon, where all of few moments were between two epochs
    while len(moments) < kills or not any(update for _, update in moments):
        most = updates // (2 * kills) if len(moments) < kills else 5
        process = start(
            tmp_path / "cut",
            *words,
            # a checkpoint after every update
            "run.save_every_minutes=0",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        # killed a number of checkpoints after its first, whatever the machine's speed
        for _ in range(draw.randint(1, most)):
            # there is none before the first, nor for a moment while one takes its place
            before = 0
            with contextlib.suppress(FileNotFoundError):
                before = last.stat().st_mtime_ns
            wait_for(partial(_last, tmp_path, before), process)
            last = _last(tmp_path, before) or last
        kill(process)
        progress = _progress(last)
        moments.append((progress["epoch"], progress["update"]))
    ours = finish(tmp_path / "cut", *words, "run.save_every_minutes=0.01")
    with capsys.disabled():
        print(f"\nkilled {len(moments)} times; saved until then (epoch, update): {moments}")
    assert len(moments) >= kills
    assert_same(state(ours), state(whole))
    assert_same(state(ours, "best.pt"), state(whole, "best.pt"))
    assert rows(ours) == rows(whole)


def _last(tmp_path, after):
    for path in (tmp_path / "cut").glob("runs/*/checkpoints/last.pt"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime_ns > after:
                return path
    return None


def _progress(last):
    import torch

    path = last if last.exists() else last.with_name("previous.pt")
    return torch.load(path, weights_only=True)["progress"]


def test_a_damaged_checkpoint_costs_nothing(quick, tmp_path, monkeypatch, capsys):
    """Half of last.pt: the run says so, goes back to the one before, and ends the same."""
    small = ("data=fake", "data.resolution=32", "data.batch_size=16", "train.ema_decay=0.9")
    folders = []
    for name in ("whole", "cut"):
        config = quick(*small, "run.save_every_minutes=0", f"run.root={tmp_path}/{name}")
        folder = tmp_path / name / run_name(config)
        if name == "cut":
            with monkeypatch.context() as patch:
                patch.setattr(training, "finish_epoch", None)
                with pytest.raises(TypeError):
                    train(config)
            last = folder / "checkpoints" / "last.pt"
            last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
        train(config)
        folders.append(folder)
    out = capsys.readouterr().out
    assert "renamed to last.pt.damaged, resuming from previous.pt" in out
    assert "resumed after epoch 0, update 7" in out
    assert_same(state(folders[1]), state(folders[0]))
    assert rows(folders[1]) == rows(folders[0])
