"""The workspace and report for W&B: without a key a file, with one what the server is sent."""

import json
import os
import subprocess
import sys

import pytest
from programs import ROOT
from wandb_server import KEY, WandbServer

from mobilenet_exp.papers.rows import paper_rows
from mobilenet_exp.reports import workspace

# keys that panels name, and that a run logs: tests/tracking/test_online.py sees these arrive
LOGGED = {
    "best/top1", "delta/top1", "delta/madds_m", "model/madds_m", "paper/madds_m", "paper/top1",
    "train/loss", "train/lr", "train/grad_norm", "val/top1", "val/loss", "val_ema/top1",
    "val_ema/loss", "speed/images_per_s", "speed/waiting_percent", "system/peak_memory_mb",
    "val/errors_sheet", "eval/errors_sheet", "train/first_batch", "val/errors", "val/per_class",
    "paper/table", "model/blocks", "model/layers",
}  # fmt: skip


def _run(folder, *words: str, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mobilenet_exp", "workspace", *words]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | env
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def _keys(spec: object) -> set[str]:
    """Return all texts of a spec."""
    if isinstance(spec, dict):
        return set().union(*map(_keys, spec.values()), map(str, spec)) if spec else set()
    if isinstance(spec, list):
        return set().union(*map(_keys, spec)) if spec else set()
    return {spec} if isinstance(spec, str) else set()


def test_without_a_key_it_writes_what_it_would_send(tmp_path):
    done = _run(tmp_path, "--project", "mine")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert "6 sections" in line
    assert "project mine; nothing sent: no W&B key here" in line
    spec = json.loads((tmp_path / "wandb_workspace.json").read_text())
    sections = spec["workspace"]["section"]["panelBankConfig"]["sections"]
    assert [each["name"] for each in sections] == [name for name, _ in workspace.sections()]
    for part in ("workspace", "report"):
        found = {key.removeprefix("summary:") for key in _keys(spec[part])}
        missing = {key for key in LOGGED if not any(key in each for each in found)}
        assert not missing


def test_with_a_key_it_saves_and_says_where(tmp_path):
    with WandbServer() as server:
        done = _run(tmp_path, "--papers", **server.environment)
    assert done.returncode == 0, done.stderr
    assert f"workspace: {server.url}/me/mobilenet_exp?nw=" in done.stdout
    assert f"report: {server.url}/me/mobilenet_exp/reports/" in done.stdout
    assert KEY not in done.stdout + done.stderr
    kinds = {each["displayName"]: each["type"] for each in server.views}
    assert kinds == {"Beside the papers": "project-view", "MobileNets: beside the papers": "runs"}
    rows = [row for row in paper_rows() if row.source == "paper" and row.top1]
    names = {run.values["displayName"] for run in server.runs.values()}
    assert {
        f"paper: {row.model} {row.width_mult:g} at {row.resolution} px" for row in rows
    } <= names
    (small,) = (
        run
        for run in server.runs.values()
        if run.values["displayName"] == "paper: v3_small 1 at 224 px"
        and run.summary["best/top1"] == 67.4
    )
    assert small.summary["model/madds_m"] == pytest.approx(56.5104)
    assert small.values["groupName"] == "papers V3"
    assert small.exit_codes == [0]


def test_a_server_that_refuses_is_one_line(tmp_path):
    with WandbServer() as server:
        server._answer_upsertView = lambda _: {}
        done = _run(tmp_path, **server.environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: W&B did not take the workspace")
    assert len(done.stderr.splitlines()) == 1
