"""Whatever ends one of several processes ends all: in one line, with a code, nothing left."""

import socket
import subprocess
from datetime import timedelta

import pytest
import torch
from hard_run import WORDS, wait_for
from image_folders import write_classes
from programs import start

from mobilenet_exp.core.errors import RunError
from mobilenet_exp.machine import distributed
from mobilenet_exp.machine.distributed import joined


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
    (line,) = first.splitlines()
    assert line.endswith(f"/a/photos: {expected}; all must have the same")
    # what all know, the first one says
    assert second == ""
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
