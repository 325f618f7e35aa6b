"""Nothing is lost: real processes are killed at random moments, and end in the same bits."""

import os
import random
import subprocess
import time
from functools import partial

from hard_run import (
    WORDS,
    assert_same,
    finish,
    folder_of,
    kill,
    rows,
    start,
    state,
    wait_for,
)

# the nightly form: KILLS=20
KILLS = int(os.environ.get("KILLS", "3"))


def test_a_run_killed_at_random_moments_ends_in_the_same_bits(tmp_path, capsys):
    """Killed by SIGKILL, anywhere, as often as asked: weights, optimizer, average, metrics."""
    words = (*WORDS, f"train.epochs={6 + 2 * KILLS}", "run.workers=2")
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = finish(tmp_path / "whole", *words, "run.save_every_minutes=null")
    seconds = state_seconds(whole)
    draw = random.Random(time.time_ns())
    moments, last = [], tmp_path / "cut" / "none"
    for _ in range(KILLS):
        process = start(
            tmp_path / "cut",
            *words,
            # a checkpoint every few updates
            "run.save_every_minutes=0.002",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        before = last.stat().st_mtime_ns if last.exists() else 0
        # from the first checkpoint of its own on, it is in the midst of its work
        wait_for(partial(_last, tmp_path, before), process)
        last = _last(tmp_path, before)
        time.sleep(draw.uniform(0, seconds / (2 * KILLS)))
        assert process.poll() is None, process.stderr.read()
        kill(process)
        progress = _progress(last)
        moments.append((progress["epoch"], progress["update"]))
    ours = finish(tmp_path / "cut", *words, "run.save_every_minutes=0.002")
    with capsys.disabled():
        print(f"\nkilled {len(moments)} times; saved until then (epoch, update): {moments}")
    assert len(moments) == KILLS
    assert any(update for _, update in moments), "never inside an epoch"
    assert_same(state(ours), state(whole))
    assert_same(state(ours, "best.pt"), state(whole, "best.pt"))
    assert rows(ours) == rows(whole)


def _last(tmp_path, after):
    for path in (tmp_path / "cut").glob("runs/*/checkpoints/last.pt"):
        if path.stat().st_mtime_ns > after:
            return path
    return None


def _progress(last):
    import torch

    path = last if last.exists() else last.with_name("previous.pt")
    return torch.load(path, weights_only=True)["progress"]


def state_seconds(folder):
    return _progress(folder / "checkpoints" / "last.pt")["seconds"]


def test_a_damaged_checkpoint_costs_nothing(tmp_path):
    """Half of last.pt: the run says so, goes back to the one before, and ends the same."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = finish(tmp_path / "whole", *WORDS, "train.epochs=3", "run.workers=0")
    words = (*WORDS, "train.epochs=3", "run.workers=0", "run.save_every_minutes=0")
    process = start(tmp_path / "cut", *words, stdout=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("cut/runs/*/checkpoints/previous.pt")), process)
    kill(process)
    last = folder_of(tmp_path / "cut") / "checkpoints" / "last.pt"
    if last.exists():
        last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    process = start(tmp_path / "cut", *words, stdout=subprocess.PIPE)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert "went back to previous.pt" in out
    ours = folder_of(tmp_path / "cut")
    assert_same(state(ours), state(whole))
    assert rows(ours) == rows(whole)
