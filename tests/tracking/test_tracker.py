"""What W&B really stored, read back with its own reader."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from hard_run import metrics

from mobilenet_exp import evaluate, train
from mobilenet_exp.config.identity import run_name
from mobilenet_exp.config.schema import EvalConfig, EvalRunConfig
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.machine import provenance
from mobilenet_exp.tracking import tracker as tracking


def _leet(folder: Path, *flags: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *flags, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in _leet(folder).splitlines()]


def _summary(folder: Path) -> dict:
    return json.loads(_leet(folder, "--summary"))


def _history(folder: Path) -> list[dict]:
    return [r["history"]["item"] for r in _records(folder) if r["type"] == "history"]


def _offline_runs(root: Path) -> list[Path]:
    return sorted((root / "wandb").glob("offline-run-*"))


def _tracker(folder: Path, **options) -> tracking.Tracker:
    common = {"config": {"model": {"name": "v2"}}, "title": "v2-w1", "project": "tests"}
    return tracking.Tracker(folder, **(common | {"mode": "offline"} | options))


@pytest.fixture(scope="module")
def logged(quick_in, tmp_path_factory):
    """One short offline run: its config, results and W&B folder."""
    folder = tmp_path_factory.mktemp("logged")
    words = ("run.wandb=offline", "run.wandb_artifacts=true", "run.pictures=true")
    config = quick_in(folder, *words)
    words = ("model.width_mult=0.35", "run.root=somewhere")
    results = train(config, overrides=words, group="a sweep")
    (folder,) = _offline_runs(Path(config.run.root))
    return config, results, folder


def test_the_run_holds_config_name_group_and_versions(logged):
    config, _, folder = logged
    summary = _summary(folder)
    assert summary["state"] == "finished"
    assert summary["run_id"] == run_name(config)
    assert summary["name"] == "v3_small-w0.35-r32-digits-sgd-s0"
    assert summary["tags"] == ["v3_small", "model.width_mult=0.35"]
    stored, expected = summary["config"], asdict(config)
    for section in ("optimizer", "schedule", "data", "train", "run"):
        for key, value in expected[section].items():
            # W&B leaves out what is empty; what was left open has the value that ran
            if value not in ({}, None, "auto"):
                assert stored[section][key] == value
    assert stored["model"]["width_mult"] == 0.35
    assert set(stored["versions"]) >= {"torch", "torchvision", "timm", "hydra-core"}
    assert stored["git_commit"] == provenance.git_commit()
    (record,) = [r["run"] for r in _records(folder) if r["type"] == "run"]
    assert (record["run_group"], record["job_type"]) == ("a sweep", "train")


def test_curves_are_stored_against_epoch(logged):
    config, results, folder = logged
    rows = [row for row in _history(folder) if "train/loss" in row]
    assert [row["epoch"] for row in rows] == [1, 2]
    path = Path(config.run.root) / results["name"] / "metrics.jsonl"
    for row, kept in zip(rows, metrics(path), strict=True):
        assert {key: row[key] for key in kept} == pytest.approx(kept)
    axes = [r["metric"] for r in _records(folder) if r["type"] == "metric"]
    found = {axis.get("glob_name") or axis["name"]: axis["step_metric"] for axis in axes}
    assert found == {"*": "epoch"} | dict.fromkeys(tracking.STEP_KEYS, "step")


def test_curves_by_step_are_the_means_between_their_points(logged):
    config, results, folder = logged
    path = Path(config.run.root) / results["name"] / "metrics.jsonl"
    points = metrics(path, "step")
    # 22 updates an epoch, so a point at each
    assert [point["step"] for point in points] == list(range(1, 45))
    assert all(point.keys() == {"step", *tracking.STEP_KEYS} for point in points)
    for epoch, row in enumerate(metrics(path)):
        losses = [point["train/loss_step"] for point in points[22 * epoch :][:22]]
        assert sum(losses) / 22 == pytest.approx(row["train/loss"], rel=1e-4)
    shown = [row for row in _history(folder) if "train/loss_step" in row]
    assert [row["step"] for row in shown] == list(range(1, 45))


def test_the_summary_sets_the_run_beside_the_paper(logged):
    _, results, folder = logged
    summary = _summary(folder)["summary"]
    assert summary["model/madds"] == results["madds"]
    assert summary["model/params"] == results["params"]
    assert summary["best/top1"] == pytest.approx(results["top1"])
    assert (summary["paper/madds_m"], summary["paper/params_m"]) == (12, 1.4)
    assert summary["paper/top1"] == 49.8
    assert summary["published/madds_m"] == pytest.approx(12.81584)
    assert summary["delta/madds_m"] == pytest.approx(0.81584)
    assert summary["paper/comparable"] is False
    assert "delta/top1" not in summary


def test_what_lies_in_the_folder_is_shown(logged):
    _, _, folder = logged
    summary = _summary(folder)["summary"]
    kinds = {key: value["_type"] for key, value in summary.items() if isinstance(value, dict)}
    assert (
        kinds.items()
        >= {
            "model/blocks": "table-file",
            "model/layers": "table-file",
            "paper/table": "table-file",
            "val/per_class": "table-file",
            "val/errors": "table-file",
            "val/errors_sheet": "image-file",
            "train/first_batch": "image-file",
        }.items()
    )


def test_checkpoints_are_artifacts_where_that_is_asked_for(logged):
    _, results, folder = logged
    found = [r["artifact"] for r in _records(folder) if r["type"] == "artifact"]
    models = [each for each in found if each["type"] == "model"]
    assert {each["name"] for each in models} == {f"model-{results['name']}"}
    # W&B adds "latest" itself
    assert [set(each["aliases"]) - {"latest"} for each in models] == [{"best"}, {"last"}]


def test_what_cannot_be_shown_costs_no_curve(tmp_path, capsys):
    with _tracker(tmp_path / "run") as tracker:
        tracker.picture("train/first_batch", tmp_path / "none.png")
        tracker.artifact(tmp_path / "none.pt", "best")
        tracker.log(1, {"val/top1": 1.0})
    printed = capsys.readouterr().out
    assert printed.count("W&B did not take ") == 2
    assert "W&B did not take train/first_batch" in printed
    assert "W&B did not take none.pt as an artifact" in printed
    (folder,) = _offline_runs(tmp_path)
    assert [row["epoch"] for row in _history(folder)] == [1]


def test_a_failed_run_is_marked_failed_and_leaves_its_traceback(tmp_path):
    def fail():
        with _tracker(tmp_path / "bad") as tracker:
            tracker.log(1, {"val/top1": 1.0})
            raise RuntimeError("went wrong")

    with pytest.raises(RuntimeError):
        fail()
    (folder,) = _offline_runs(tmp_path)
    summary = _summary(folder)
    assert (summary["state"], summary["exit_code"]) == ("failed", 1)
    assert summary["summary"]["val/top1"] == 1
    assert "RuntimeError: went wrong" in (tmp_path / "bad" / "error.txt").read_text()


def test_two_runs_of_one_process_keep_their_own_config(tmp_path):
    for width in (0.5, 1.5):
        config = {"model": {"width_mult": width}}
        with _tracker(tmp_path / f"run-{width}", config=config) as tracker:
            tracker.log(1, {"val/top1": width})
    stored = [_summary(folder) for folder in _offline_runs(tmp_path)]
    widths = {run["config"]["model"]["width_mult"]: run["summary"]["val/top1"] for run in stored}
    assert widths == {0.5: 0.5, 1.5: 1.5}


KILLED = """
import sys, time
from pathlib import Path
from mobilenet_exp.tracking.tracker import Tracker
with Tracker(Path(sys.argv[1]), config={}, title="t", mode="offline", project="p") as tracker:
    for epoch in (1, 2, 3):
        tracker.log(epoch, {"val/top1": float(epoch)})
    print("logged", flush=True)
    time.sleep(60)
"""


def test_rows_survive_a_kill(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "logged\n"
    # W&B writes within a second, our own file at once
    time.sleep(2.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    path = tmp_path / "killed" / "metrics.jsonl"
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [1, 2, 3]
    (folder,) = _offline_runs(tmp_path)
    assert [row["epoch"] for row in _history(folder)] == [1, 2, 3]


def test_auto_without_a_key_is_offline_and_says_why(tmp_path):
    with _tracker(tmp_path / "run", mode="auto") as tracker:
        assert "W&B: offline" in tracker.status
        assert "no W&B key here" in tracker.status
    assert len(_offline_runs(tmp_path)) == 1


UNREACHABLE = """
import sys
from pathlib import Path
from mobilenet_exp.tracking import tracker as tracking
folder, mode = Path(sys.argv[1]), sys.argv[2]
with tracking.Tracker(folder, config={}, title="t", mode=mode, project="p") as tracker:
    tracker.log(1, {"val/top1": 1.0})
    print(tracker.status)
"""


def _with_a_key_but_no_network(folder: Path, mode: str) -> subprocess.CompletedProcess:
    """In a process of its own, because W&B keeps a key that it has seen."""
    # nothing listens there
    env = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    return subprocess.run(
        [sys.executable, "-c", UNREACHABLE, str(folder), mode],
        env=os.environ | env | {"WANDB_HTTP_TIMEOUT": "3"},
        capture_output=True,
        text=True,
        timeout=90,
    )


def test_auto_with_a_key_but_no_network_is_offline_after_a_short_wait(tmp_path):
    done = _with_a_key_but_no_network(tmp_path / "run", "auto")
    assert done.returncode == 0, done.stderr
    assert "W&B: offline" in done.stdout
    assert "W&B was not reached" in done.stdout
    (folder,) = _offline_runs(tmp_path)
    assert _summary(folder)["state"] == "finished"
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"0" * 40 in content for content in written)


NO_RUN = """
import sys, wandb
from pathlib import Path
from mobilenet_exp.tracking import environment, tracker as tracking
environment.INIT_TIMEOUT = 3
wandb.login = lambda **_: True
with tracking.Tracker(Path(sys.argv[1]), config={}, title="t", mode="auto", project="p") as tracker:
    tracker.log(1, {"val/top1": 1.0})
    print(tracker.status)
"""


def test_auto_is_offline_if_the_server_takes_the_key_but_opens_no_run(tmp_path):
    env = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    env |= {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", NO_RUN, str(tmp_path / "run")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert "W&B: offline" in done.stdout
    assert "W&B opened no run" in done.stdout
    (folder,) = _offline_runs(tmp_path)
    assert [row["epoch"] for row in _history(folder)] == [1]


def test_online_without_network_is_refused(tmp_path):
    done = _with_a_key_but_no_network(tmp_path / "run", "online")
    assert "InputError: run.wandb=online: W&B was not reached" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_online_is_never_replaced_in_silence(tmp_path):
    with (
        pytest.raises(InputError, match="run.wandb=online: no W&B key here"),
        _tracker(tmp_path / "run", mode="online"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "status"),
    [("", "W&B: offline"), ("offline", "W&B: offline"), ("disabled", "disabled")],
)
def test_auto_follows_the_environment(tmp_path, monkeypatch, value, status):
    monkeypatch.setenv("WANDB_MODE", value)
    with _tracker(tmp_path / "run", mode="auto") as tracker:
        assert status in tracker.status


def test_an_empty_mode_is_none_from_the_start():
    """In a process of its own: W&B reads its variables once."""
    words = "from mobilenet_exp.tracking.environment import read_surroundings as read; read()"
    done = subprocess.run(
        [sys.executable, "-c", words], env=os.environ | {"WANDB_MODE": ""}, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


def test_an_unknown_mode_in_the_environment_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "foo")
    with (
        pytest.raises(InputError, match="WANDB_MODE=foo: not known; allowed: online, offline"),
        _tracker(tmp_path / "run", mode="auto"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("WANDB_TAGS", "x" * 70, "Tags must be between 1 and 64 characters"),
        ("WANDB_PROJECT", "team/project", "cannot contain characters"),
        ("WANDB_SILENT", "maybe", "should be a valid boolean"),
        ("WANDB_BASE_URL", "nonsense", "should be a valid URL"),
        ("WANDB_INIT_TIMEOUT", "soon", "should be a valid number"),
    ],
)
def test_a_variable_that_wandb_refuses_is_one_line(tmp_path, monkeypatch, name, value, problem):
    monkeypatch.setenv(name, value)
    for mode in ("offline", "auto"):
        with (
            pytest.raises(InputError, match=f"{name}={value}: W&B refuses it: .*{problem}"),
            _tracker(tmp_path / "run", mode=mode),
        ):
            pass
    assert list(tmp_path.iterdir()) == []
    with _tracker(tmp_path / "run", mode="disabled") as tracker:
        assert tracker.status == "W&B: disabled"


def test_empty_variables_of_wandb_are_as_good_as_not_set(tmp_path, monkeypatch):
    for name in ("WANDB_TAGS", "WANDB_SILENT", "WANDB_RUN_GROUP"):
        monkeypatch.setenv(name, "")
    with _tracker(tmp_path / "run", mode="offline") as tracker:
        assert tracker.status.startswith("W&B: offline")


def test_disabled_writes_nothing_of_wandb(tmp_path):
    with _tracker(tmp_path / "run", mode="disabled") as tracker:
        tracker.log(1, {"val/top1": 1.0})
    assert not (tmp_path / "wandb").exists()
    assert tracker.status == "W&B: disabled"


def test_git_commit_is_that_of_the_code():
    commit = provenance.git_commit()
    if commit is None:
        pytest.skip("not a git checkout")
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=os.path.dirname(__file__), capture_output=True, text=True
    )
    assert commit.removesuffix("-dirty") == head.stdout.strip()


def test_a_package_inside_somebody_s_repository_has_no_commit(tmp_path):
    """Installed into the .venv of another project, which is a git repository."""
    site = tmp_path / "mine" / ".venv"
    target = site / "mobilenet_exp" / "machine"
    target.mkdir(parents=True)
    for folder in (target.parent, target):
        (folder / "__init__.py").touch()
    shutil.copy(provenance.__file__, target)
    commands = (
        ("git", "init", "-q"),
        ("git", "-c", "user.name=x", "-c", "user.email=x@x", "commit", "--allow-empty", "-qm", "x"),
    )
    for command in commands:
        subprocess.run(command, cwd=tmp_path / "mine", check=True)
    code = "from mobilenet_exp.machine.provenance import git_commit; print(git_commit())"
    command = [sys.executable, "-c", code]
    env = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=site, capture_output=True, text=True, env=env)
    assert done.stdout == "None\n", done.stderr


def test_an_evaluation_is_a_run_of_its_own_of_job_type_eval(logged):
    config, results, _ = logged
    root = Path(config.run.root)
    best = root / results["name"] / "checkpoints" / "best.pt"
    offline = EvalRunConfig(device="cpu", wandb="offline", root=config.run.root)
    before = set(_offline_runs(root))
    scores = evaluate(EvalConfig(checkpoint=str(best), run=offline), overrides=("x=1",))
    (folder,) = set(_offline_runs(root)) - before
    (record,) = [r["run"] for r in _records(folder) if r["type"] == "run"]
    assert record["job_type"] == "eval"
    summary = _summary(folder)
    assert summary["run_id"] == f"{results['name']}-{scores['name']}"
    assert (summary["state"], summary["tags"]) == ("finished", ["v3_small", "x=1"])
    stored = summary["summary"]
    assert stored["eval/top1"] == results["top1"]
    assert stored["eval/num_images"] == 360
    assert {"eval/ece", "eval/loss", "eval/num_left_out", "model/madds_m", "paper/top1"} <= set(
        stored
    )
    tables = list(folder.rglob("*per_class*.table.json"))
    assert len(json.loads(tables[0].read_text())["data"]) == 10
