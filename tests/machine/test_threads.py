"""Threads beside other programs, and numbers too small to compute with quickly."""

import os
from types import SimpleNamespace

import pytest
import torch

from mobilenet_exp import train
from mobilenet_exp.config.schema import RunConfig
from mobilenet_exp.machine import compute
from mobilenet_exp.machine.compute import Compute, set_up
from mobilenet_exp.training import checkpointing, reporting
from mobilenet_exp.training import train as training
from mobilenet_exp.training.train import train_epoch
from mobilenet_exp.weights.checkpoint import load_checkpoint

BEFORE = """cpu  100 0 100 800 0 0 0 0 0 0
cpu0 50 0 50 400 0 0 0 0 0 0
cpu1 50 0 50 400 0 0 0 0 0 0
intr 5
"""
# in 100 ticks the first was idle for 80 and waited for a disk for 15, the second for 10
AFTER = """cpu  200 0 100 890 15 0 0 5 0 0
cpu0 55 0 50 480 15 0 0 0 0 0
cpu1 135 0 50 410 0 0 0 5 0 0
intr 9
"""


@pytest.fixture
def threads(monkeypatch):
    """Torch with four threads, which the environment did not choose."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_idle_cores_are_counted_from_what_each_has_done(tmp_path, monkeypatch):
    stat = tmp_path / "stat"
    stat.write_text(BEFORE)
    monkeypatch.setattr(compute, "STAT", stat)
    monkeypatch.setattr(compute.time, "sleep", lambda _: stat.write_text(AFTER))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert compute.idle_cores() == pytest.approx(0.95 + 0.10)
    stat.write_text(BEFORE)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1}, raising=False)
    assert compute.idle_cores() == pytest.approx(0.10)
    monkeypatch.setattr(compute, "STAT", tmp_path / "none")
    assert compute.idle_cores() is None


def test_this_machine_s_cores_are_counted():
    idle = compute.idle_cores(0.05)
    assert idle is None or 0 <= idle <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("idle", "left"), [(4.0, 4), (3.6, 4), (2.4, 2), (0.1, 1), (None, 4), (64.0, 4)]
)
def test_busy_cores_are_left_to_others(threads, monkeypatch, idle, left):
    monkeypatch.setattr(compute, "idle_cores", lambda: idle)
    line = compute.leave_busy_cores()
    assert torch.get_num_threads() == left
    assert line.startswith(f"{left} of 4 CPU threads, for other programs") == (left < 4)


def test_what_the_environment_says_is_done(threads, monkeypatch):
    monkeypatch.setattr(compute, "idle_cores", lambda: 0.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert compute.leave_busy_cores() == ""
    assert torch.get_num_threads() == 4


def test_a_run_says_so_and_keeps_its_threads_when_it_is_resumed(
    threads, quick, tmp_path, monkeypatch, capsys
):
    words = ("data=fake", "data.args.num_images=32", "data.resolution=32", "train.epochs=2")
    idle = [1.0]
    monkeypatch.setattr(compute, "idle_cores", lambda: idle[0])
    monkeypatch.setattr(compute.os, "cpu_count", lambda: 4)

    def one_epoch(session, checkpointer, record):
        train_epoch(session, checkpointer, record)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "train_epochs", one_epoch)
        with pytest.raises(KeyboardInterrupt):
            train(quick(*words))
    assert "1 of 4 CPU threads, for other programs use the cores now" in capsys.readouterr().out
    (last,) = tmp_path.rglob("last.pt")
    assert load_checkpoint(last)["threads"] == 1
    # the next job of this process chooses its own
    assert torch.get_num_threads() == 4
    idle[0] = 2.0
    train(quick(*words))
    out = capsys.readouterr().out
    assert "goes on with 1 CPU thread, as before; run.threads=2 changes it" in out
    # of two lines about threads, the one that no longer holds is left out
    assert "2 of 4 CPU threads" not in out
    assert load_checkpoint(last)["threads"] == 1
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(
    ("threads_then", "processes", "line", "now"),
    [
        (2, 1, "goes on with 2 CPU threads, as before; run.threads=4 changes it", 2),
        (2, 8, "had 2 CPU threads a process and goes on with 4: sums differ in their last", 4),
        (3, 1, "had 3 CPU threads a process and goes on with 4", 4),
        (4, 1, "", 4),
        (None, 1, "", 4),
    ],
)
def test_threads_are_kept_where_there_are_as_many_cores_and_processes(
    threads, quick, monkeypatch, threads_then, processes, line, now
):
    monkeypatch.setattr(compute.os, "cpu_count", lambda: 4)
    session = SimpleNamespace(
        config=quick("run.threads=null"),
        compute=Compute(torch.device("cpu")),
        world=SimpleNamespace(size=1, ranks_on_machine=2 if threads_then == 3 else 1),
    )
    checkpoint = {"threads": threads_then, "meters": [{}] * processes}
    found = checkpointing.keep_threads(session, checkpoint)
    assert found.startswith(line)
    assert torch.get_num_threads() == now
    torch.set_num_threads(4)
    session.compute = Compute(torch.device("cuda"))
    assert checkpointing.keep_threads(session, {"threads": 2, "meters": [{}]}) == ""
    assert torch.get_num_threads() == 4


def test_an_epoch_much_slower_than_another_is_remarked_upon(threads):
    cpu = Compute(torch.device("cpu"))
    assert not any(reporting.slow_line(speed, 300, cpu) for speed in (300, 110))
    line = reporting.slow_line(90, 300, cpu)
    assert "the fastest epoch ran at 300 images/s: other programs may use the cores" in line
    torch.set_num_threads(1)
    assert reporting.slow_line(1, 300, cpu) == ""


def test_numbers_that_take_a_cpu_long_are_zero():
    try:
        set_up(RunConfig(device="cpu", keep_memory=False), half=True, leaves_busy_cores=False)
        assert (torch.tensor([1e-30]) * 1e-10).item() == 0.0
    finally:
        torch.set_flush_denormal(False)
    assert (torch.tensor([1e-30]) * 1e-10).item() > 0.0
