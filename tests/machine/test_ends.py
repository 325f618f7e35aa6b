"""Whatever ends one of several processes ends all: in one line, with a code, nothing left."""

import os
import signal
import socket
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from hard_run import WORDS, children, folder_of, rows, wait_for
from image_folders import write_classes
from programs import ROOT, environment, start

from mobilenet_exp.core.errors import RunError
from mobilenet_exp.machine import distributed
from mobilenet_exp.machine.distributed import joined
from mobilenet_exp.weights.checkpoint import load_checkpoint


def _free_port() -> str:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return str(found.getsockname()[1])


def _start_ranks(folder, words_of):
    """Start two processes as a launcher on each of two machines does; `words_of(rank)`."""
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": _free_port()}
    env |= {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return [
        start(folder, "train.py", *words_of(rank), env=env | {"RANK": str(rank)}, **pipes)
        for rank in (0, 1)
    ]


def test_ranks_that_see_other_images_say_so_before_the_first_update(tmp_path):
    for place, count in (("a", 4), ("b", 5)):
        write_classes(tmp_path / place / "photos", {"train": count, "val": 2})
    words = (
        "model.name=tiny", "run.imports=[tiny_net]", "data=imagefolder", "data.resolution=32",
        "data.batch_size=4", "train.epochs=1", "run.device=cpu", "run.wandb=disabled",
        f"run.root={tmp_path}/runs", "run.workers=0",
    )  # fmt: skip
    ranks = _start_ranks(tmp_path, lambda r: (*words, f"data.root={tmp_path}/{'ab'[r]}/photos"))
    (_, first), (_, second) = (each.communicate(timeout=60) for each in ranks)
    assert [each.returncode for each in ranks] == [2, 2], first + second
    expected = "process 0 has 8 + 4 images of 2 classes, process 1 10 + 4 images of 2 classes"
    # a launcher would have ended the second one before it speaks
    for place, text in (("a", first), ("b", second)):
        (line,) = text.splitlines()
        assert line.endswith(f"/{place}/photos: {expected}; all must have the same")
    assert not (tmp_path / "runs").exists()


def test_a_rank_that_is_lost_ends_the_others(tmp_path):
    words = (*WORDS, "train.epochs=400", "run.workers=0", f"run.root={tmp_path}/runs")
    ranks = _start_ranks(tmp_path, lambda _: words)
    wait_for(lambda: list(tmp_path.glob("runs/*/checkpoints/last.pt")), ranks[0])
    ranks[1].kill()
    _, errors = ranks[0].communicate(timeout=60)
    assert ranks[0].returncode == 1
    lines = [line for line in errors.splitlines() if not line.startswith("[")]
    assert len(lines) == 1, errors
    assert "another process of this run has ended or does not answer" in lines[0]
    assert "resumes from the last checkpoint" in lines[0]


def test_a_rank_without_peers_does_not_wait_for_ever(monkeypatch):
    env = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": _free_port()}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "JOIN_WITHIN", timedelta(seconds=1))
    with (
        pytest.raises(RunError, match=r"process 0 did not meet all 2 at localhost:\d+: .*reach"),
        joined(torch.device("cpu")),
    ):
        pass


def _start_agent(folder, port, words, *, is_host):
    """Start torchrun as on one of up to two machines, with a process of ours.

    One of them holds what they agree on, and must not be the one that is lost.
    """
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1",
        "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=two",
        "--rdzv-conf=last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3,"
        f"is_host={is_host}",
        "--max-restarts=3", "--monitor-interval=0.2", str(ROOT / "train.py"), *words,
    ]  # fmt: skip
    log = (folder / f"agent-{port}.log").open("a")
    return subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=log, stderr=log, start_new_session=True
    )


def test_two_machines_go_on_as_one_when_one_is_lost(tmp_path):
    """Each with an agent of torchrun; the second one's is killed with all that it started."""
    words = (*WORDS, "train.epochs=40", "run.workers=0", f"run.root={tmp_path}/runs")
    words = (*words, "run.save_every_minutes=0.005")
    port = _free_port()
    first, second = (_start_agent(tmp_path, port, words, is_host=is_host) for is_host in (1, 0))
    try:
        wait_for(lambda: list(tmp_path.glob("runs/*/checkpoints/previous.pt")), first)
        (kept,) = tmp_path.glob("runs/*/checkpoints/previous.pt")
        assert len(load_checkpoint(kept)["meters"]) == 2
        (rank,) = children(second.pid, "train.py")
        os.killpg(rank, signal.SIGKILL)
        os.killpg(second.pid, signal.SIGKILL)
        first.wait(timeout=180)
    finally:
        for agent in (first, second):
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)
    logs = "".join(path.read_text() for path in tmp_path.glob("agent-*.log"))
    assert first.returncode == 0, logs
    assert "on cpu, float32, 1 thread, resumed after epoch" in logs
    folder = folder_of(tmp_path)
    assert [row["epoch"] for row in rows(folder)] == list(range(1, 41))
    assert len(load_checkpoint(folder / "checkpoints" / "last.pt")["meters"]) == 1
