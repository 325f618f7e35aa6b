"""The last epochs that improved top-1 are kept, and their mean is a checkpoint like others."""

import json
import re
from pathlib import Path

import pytest
import torch

from mobilenet_exp import compose, evaluate, train
from mobilenet_exp.__main__ import main
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.training import checkpointing
from mobilenet_exp.training.state import Progress
from mobilenet_exp.weights.averaging import average, kept
from mobilenet_exp.weights.checkpoint import load_checkpoint

TOP1 = [10.0, 20.0, 15.0, 30.0, 30.0, 40.0]


@pytest.fixture
def folder(quick_in, tmp_path, monkeypatch):
    """The checkpoints of a run whose top-1 was as in TOP1."""
    complete = Progress.complete_epoch

    def as_told(progress, scores):
        return complete(progress, scores | {"top1": TOP1[progress.epoch]})

    monkeypatch.setattr(Progress, "complete_epoch", as_told)
    words = ("data=fake", "data.resolution=32", "data.args.num_images=32", "data.batch_size=16",
             "train.ema_decay=0.5", "run.keep_best=3")  # fmt: skip
    config = quick_in(tmp_path, *words, f"train.epochs={len(TOP1)}")
    results = train(config)
    return Path(config.run.root) / results["name"] / "checkpoints"


def test_the_mean_is_of_the_last_epochs_that_improved(folder, capsys):
    assert [path.name for path in kept(folder)] == [f"best-{n:06}.pt" for n in (2, 4, 6)]
    assert load_checkpoint(folder / "best.pt")["epoch"] == 6
    assert main(["average", str(folder.parent)]) == 0
    assert "mean of epochs 2, 4, 6; python eval.py checkpoint=" in capsys.readouterr().out
    found = load_checkpoint(folder / "averaged.pt")
    states = [load_checkpoint(path) for path in kept(folder)]
    assert "optimizer" not in found
    for key in ("model", "model_ema"):
        for name, mean in found[key].items():
            values = [state[key][name] for state in states]
            if mean.is_floating_point():
                torch.testing.assert_close(mean, sum(values) / 3)
                assert mean.dtype == values[0].dtype
            else:
                assert torch.equal(mean, values[-1])
    assert any(not torch.equal(found["model"][n], states[-1]["model"][n]) for n in found["model"])


def test_it_is_scored_and_says_what_it_is(folder):
    path = average(folder, 2)
    root = f"run.root={folder.parents[1]}"
    words = (f"checkpoint={path}", "run.device=cpu", "run.wandb=disabled", root)
    results = evaluate(compose(*words, program="eval"))
    assert results["weights_notes"][:2] == ["mean of epochs 4, 6", "averaged weights"]
    assert json.loads((folder.parent / "eval" / results["name"] / "results.json").read_text())


def test_what_cannot_be_averaged_is_one_line(folder, tmp_path, capsys):
    with pytest.raises(InputError, match=r"RUN=.*holds 3 checkpoints of best epochs, 4 are needed"):
        average(folder, 4)
    kept(folder)[0].write_bytes(b"damaged")
    assert main(["average", str(folder)]) == 2
    assert "or is not a checkpoint" in capsys.readouterr().err
    for words in ([], [str(tmp_path)], [str(folder), "many"], [str(folder), "1"]):
        assert main(["average", *words]) == 2
        assert re.match(r"error: (RUN|COUNT)=", capsys.readouterr().err)
    assert not (folder / "averaged.pt").exists()


def test_none_are_kept_unless_asked(quick_in, tmp_path):
    config = quick_in(tmp_path, "data=fake", "data.args.num_images=32", "data.resolution=32")
    folder = tmp_path / "checkpoints"
    state = {"model": {}, "epoch": 1}
    checkpointing._write(folder, state, is_best=True, keep=config.run.keep_best)
    assert not kept(folder)
    for epoch in (2, 3, 4):
        checkpointing._write(folder, state | {"epoch": epoch}, is_best=epoch != 4, keep=1)
    assert [load_checkpoint(path)["epoch"] for path in kept(folder)] == [3]
