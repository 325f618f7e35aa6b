"""Runs of version 0.11.0 in `tests/fixtures/runs_0_11_0.tar.gz`: one finished, one stopped.

Made by version 0.11.0 with WORDS, the second with `train.epochs=4 run.save_every_minutes=0` and
stopped by SIGTERM in its second epoch.
"""

import json
import shutil
from pathlib import Path

import pytest
from hard_run import metrics

from mobilenet_exp import compose, train
from mobilenet_exp.__main__ import main
from mobilenet_exp.config.schema import EvalConfig, EvalRunConfig
from mobilenet_exp.evaluation.job import evaluate

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "runs_0_11_0.tar.gz"
WORDS = (
    "model=v1", "model.width_mult=0.05", "data=digits", "data.resolution=32", "data.batch_size=64",
    "run.wandb=disabled", "run.pictures=false", "run.root=runs", "run.device=cpu", "run.threads=1",
    "optimizer.lr=0.2",
)  # fmt: skip
FINISHED = Path("runs/v1-w0.05-r32-digits-sgd-s0-ce31f04a")
STOPPED = Path("runs/v1-w0.05-r32-digits-sgd-s0-3aad9967")


@pytest.fixture(autouse=True)
def _unpacked(tmp_path, monkeypatch):
    shutil.unpack_archive(ARCHIVE, tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)


def test_a_finished_run_answers_and_is_evaluated(capsys):
    stored = json.loads((FINISHED / "results.json").read_text())
    assert train(compose(*WORDS, "train.epochs=2")) == stored
    assert f"top-1 %         {stored['top1']:.2f}" in capsys.readouterr().out
    run = EvalRunConfig(device="cpu", wandb="disabled", root="runs", pictures=False)
    scores = evaluate(EvalConfig(checkpoint=str(FINISHED / "checkpoints" / "best.pt"), run=run))
    # one of 360 images is 0.28 points, and may fall otherwise on another processor
    assert scores["top1"] == pytest.approx(stored["top1"], abs=0.6)


def test_a_stopped_run_goes_on(capsys):
    results = train(compose(*WORDS, "train.epochs=4"))
    assert results["name"] == STOPPED.name
    assert "resumed after epoch 1, update 8" in capsys.readouterr().out
    rows = metrics(STOPPED / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert results["top1"] > rows[0]["val/top1"]


def test_both_are_listed_and_shown(capsys):
    assert main(["runs", "runs", "--csv"]) == 0
    listed = capsys.readouterr().out
    assert FINISHED.name in listed
    assert STOPPED.name in listed
    assert main(["page", "runs", "--out", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert FINISHED.name in page
    assert STOPPED.name in page
