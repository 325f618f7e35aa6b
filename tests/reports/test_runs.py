"""`python -m mobilenet_exp runs` over folders as runs leave them, whole or broken."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from programs import ROOT

from mobilenet_exp import train
from mobilenet_exp.__main__ import main
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.machine.lock import is_locked, locked
from mobilenet_exp.reports.reading import find_run, read_run, read_runs
from mobilenet_exp.reports.runs import differences, row_of


@pytest.fixture
def runs(finished, tmp_path):
    """A folder of runs: one finished, and what can go wrong with others."""
    _, _, folder = finished
    root = tmp_path / "runs"
    whole = root / "whole"
    shutil.copytree(folder, whole)
    for name in ("stopped", "failed", "damaged", "cut_off", "of_a_later_version"):
        shutil.copytree(folder, root / name, ignore=shutil.ignore_patterns("results.json"))
    (root / "failed" / "error.txt").write_text("Traceback ...\nValueError: it <b>broke</b>\n\n")
    (root / "damaged" / "results.json").write_text('{"top1": 12.5, "mod')
    with (root / "cut_off" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "val/to')
    later = {"top1": "high", "madds": 10**400, "epochs": None, "reference": [1], "paper": 5}
    (root / "of_a_later_version" / "results.json").write_text(json.dumps(later))
    (root / "of_a_later_version" / "config.yaml").write_text("- a\n- list\n")
    (root / "of_a_later_version" / "provenance.json").write_text('{"starts": 3}')
    (root / "empty").mkdir()
    (root / "wandb").mkdir()
    (root / os.fsdecode(b"caf\xe9")).mkdir()
    (root / os.fsdecode(b"caf\xe9") / "config.yaml").write_text(
        "model: {name: v2}\ndata: {}\nrun: {}\n"
    )
    (root / os.fsdecode(b"caf\xe9") / "provenance.json").write_text('{"star')
    # not of a run, though its files have such names
    (root / "foreign").mkdir()
    (root / "foreign" / "config.yaml").write_text("site: docs\n")
    (root / "foreign" / "latency.json").write_text("{}")
    # as a package manager's environment has one
    (root / "foreign" / ".lock").touch()
    (root / "foreign" / "metrics.jsonl").write_text('{"epoch": 1, "cost": 2}\n')
    (root / ".hidden").mkdir()
    (root / ".hidden" / "metrics.jsonl").touch()
    return root


def _state(root) -> dict[str, str]:
    return {run.name: run.state for run in read_runs(root)}


def _bytes(root) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_states(runs):
    assert _state(runs) == {
        "whole": "finished",
        "stopped": "stopped",
        "failed": "failed",
        "damaged": "damaged",
        "cut_off": "stopped",
        "of_a_later_version": "finished",
        os.fsdecode(b"caf\xe9"): "stopped",
    }


def test_a_run_in_progress_is_seen_and_nothing_changes(runs):
    (runs / "whole" / ".lock").touch()
    (runs / "whole" / ".lock").chmod(0o444)
    before = _bytes(runs)
    assert main(["runs", str(runs)]) == 0
    assert not is_locked(runs / "whole")
    assert _bytes(runs) == before
    with locked(runs / "stopped"):
        assert _state(runs)["stopped"] == "running"
    assert _state(runs)["stopped"] == "stopped"


def test_looking_does_not_keep_a_run_from_starting(tmp_path):
    with locked(tmp_path):
        pass
    look = f"import fcntl, time; f = open({str(tmp_path / '.lock')!r}); "
    look += "fcntl.flock(f, fcntl.LOCK_SH); print('held', flush=True); time.sleep(0.05)"
    other = subprocess.Popen([sys.executable, "-c", look], stdout=subprocess.PIPE)
    other.stdout.readline()
    with locked(tmp_path):
        pass
    assert other.wait() == 0


def test_what_a_list_says_of_a_run(runs, finished):
    _, results, _ = finished
    row = row_of(read_run(runs / "whole"))
    assert row["top1"] == results["top1"]
    assert (row["model"], row["data"], row["epochs"]) == ("v3_small", "digits", 2)
    assert row["gap"] is None
    assert row["paper_top1"] == results["reference"]["row"]["top1"]
    so_far = row_of(read_run(runs / "cut_off"))
    assert so_far["top1"] == pytest.approx(results["top1"])
    assert so_far["epochs"] == 2
    assert row_of(read_run(runs / "failed"))["problem"] == "ValueError: it <b>broke</b>"
    odd = row_of(read_run(runs / "of_a_later_version"))
    assert (odd["top1"], odd["epochs"], odd["paper_top1"]) == (None, None, None)


def test_lists_in_three_forms(runs, capsys):
    words = ["runs", str(runs), "--sort", "name"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "7 runs" in out
    assert "caf\\xe9" in out
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert main([*words, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["name"] for row in rows] == [row["name"] for row in told]
    assert [row["name"] for row in told] == sorted(row["name"] for row in told)
    assert next(row for row in rows if row["name"] == "whole")["state"] == "finished"


def test_filters_and_order(runs, capsys):
    old = time.time() - 3 * 86_400
    for path in (runs / "failed").iterdir():
        os.utime(path, (old, old))

    def names(*words: str) -> list[str]:
        assert main(["runs", str(runs), "--json", *words]) == 0
        return [row["name"] for row in json.loads(capsys.readouterr().out)]

    assert names("--state", "failed,damaged", "--sort", "name") == ["damaged", "failed"]
    assert names("--older-than", "2") == ["failed"]
    assert names("--name", "who") == ["whole"]
    assert names("--model", "v2") == ["caf\\xe9"]
    assert names("--data", "cifar10") == []
    assert names("--sort", "top1")[0] in ("whole", "stopped", "failed", "damaged", "cut_off")
    assert names("--sort", "top1", "--reverse")[0] not in ("whole", "stopped")


def test_sweeps_are_known_with_and_without_wandb(finished, tmp_path):
    _, results, folder = finished
    root = tmp_path / "runs"
    shutil.copytree(folder, root / results["name"])
    sweep = root / "sweeps" / "widths"
    sweep.mkdir(parents=True)
    (sweep / "sweep.json").write_text(json.dumps({"group": "width_mult", "planned": []}))
    job = {"number": 0, "results": {"name": results["name"]}}
    (sweep / "job-0.json").write_text(json.dumps(job))
    (root / "sweeps" / "other").mkdir()
    (root / "sweeps" / "other" / "job-0.json").write_text("{")
    assert read_runs(root)[0].sweep == "width_mult"
    (root / results["name"] / "wandb.json").write_text('{"group": "mine"}')
    assert read_runs(root)[0].sweep == "mine"


def test_differences(quick, runs, tmp_path):
    train(quick("train.epochs=1", "model.width_mult=0.5"), overrides=())
    other = read_runs(tmp_path / "runs")
    ours = next(run for run in other if run.setting("model.width_mult") == 0.5)
    found = {key: values for key, *values in differences(read_run(runs / "whole"), ours)}
    assert found["model.width_mult"] == ["0.35", "0.5"]
    assert found["train.epochs"] == ["2", "1"]
    assert set(found) > {"top1", "madds", "params"}
    assert "command" not in found
    assert not [key for key in found if key.startswith(("optimizer.", "schedule."))]


def test_finding_a_run(runs):
    assert find_run(runs, "whole").name == "whole"
    assert find_run(runs, "later").name == "of_a_later_version"
    assert find_run(runs, str(runs / "failed")).name == "failed"
    with pytest.raises(InputError, match="no run in .* has this name"):
        find_run(runs, "nothing")
    with pytest.raises(InputError, match="means 3 runs: .*; write more of the name"):
        find_run(runs, "ed")


def test_prune_asks_and_leaves_what_counts(runs, capsys, monkeypatch):
    words = ["runs", "prune", str(runs)]
    shutil.rmtree(runs / "failed" / "checkpoints")
    assert main(words) == 2
    assert "--yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    before = _state(runs)
    monkeypatch.setattr("builtins.input", lambda question: "")
    assert main(words) == 0
    assert _state(runs) == before
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "y")
    with locked(runs / os.fsdecode(b"caf\xe9")):
        assert main(words) == 0
    assert asked == ["remove 1 folder? [y/N] "]
    assert set(before) - set(_state(runs)) == {"failed"}
    assert main([*words, "--state", "stopped,damaged", "--yes"]) == 0
    assert set(_state(runs)) == {"whole", "of_a_later_version"}
    assert not list(runs.glob(".removed*"))
    assert (runs / "foreign" / "config.yaml").exists()


@pytest.mark.parametrize("kept", ["checkpoints/previous.pt", "checkpoints/best.pt", "eval"])
def test_prune_leaves_what_took_work(runs, kept):
    folder = runs / "stopped"
    shutil.rmtree(folder / "checkpoints")
    assert "/stopped " in _pruned(runs)
    if kept == "eval":
        shutil.copytree(runs / "whole", folder / "eval" / "best-digits")
    else:
        (folder / "checkpoints").mkdir()
        (folder / kept).touch()
    assert "/stopped " not in _pruned(runs)


def _pruned(runs) -> str:
    """Return what a prune would remove, as it prints it."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        patch.setattr("builtins.input", lambda question: "n")
        assert main(["runs", "prune", str(runs)]) == 0
    return out.getvalue()


def test_prune_looks_again_after_the_question(runs, monkeypatch, capsys):
    folder = runs / "stopped"
    shutil.rmtree(folder / "checkpoints")

    def answer(question):
        # the run begins, saves and ends while a person thinks
        os.utime(folder / "metrics.jsonl", (time.time() + 5,) * 2)
        return "y"

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", answer)
    assert main(["runs", "prune", str(runs), "--state", "stopped,failed"]) == 0
    printed = capsys.readouterr().out
    assert "stopped stays: it was written to meanwhile" in printed
    assert folder.exists()
    assert not (runs / "failed").exists()


def test_prune_that_fails_or_is_left_is_one_line(runs, monkeypatch, capsys):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename", refuse)
        assert main(["runs", "prune", str(runs), "--state", "failed", "--yes"]) == 0
    printed = capsys.readouterr().out
    assert "failed stays: Permission denied" in printed
    assert "removed 0 folders" in printed

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", refuse)
        assert main(["runs", "prune", str(runs), "--state", "damaged", "--yes"]) == 0
    assert "damaged stays: in part, as .removed-damaged-" in capsys.readouterr().out
    assert list(runs.glob(".removed-damaged-*"))
    assert main(["runs", "prune", str(runs), "--state", "running", "--yes"]) == 0
    assert not list(runs.glob(".removed-*"))
    capsys.readouterr()

    def end(question):
        raise EOFError

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", end)
    assert main(["runs", "prune", str(runs), "--state", "failed"]) == 0
    assert "nothing removed" in capsys.readouterr().out
    assert (runs / "failed").exists()


def test_a_folder_that_may_not_be_looked_into_is_passed_over(runs, monkeypatch):
    before = _state(runs)
    (runs / "lost+found").mkdir()
    real = os.stat

    def stat(path, *words, **options):
        if "lost+found/" in os.fsdecode(path):
            raise PermissionError(13, "Permission denied")
        return real(path, *words, **options)

    monkeypatch.setattr(os, "stat", stat)
    assert _state(runs) == before


def test_a_reader_that_goes_away_brings_nothing_down(runs):
    command = f"{sys.executable} -m mobilenet_exp runs {runs} --json | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stderr == ""


def test_prune_does_not_follow_links(runs, tmp_path):
    target = tmp_path / "elsewhere"
    shutil.copytree(runs / "damaged", target)
    shutil.rmtree(runs / "damaged")
    (runs / "damaged").symlink_to(target)
    assert main(["runs", "prune", str(runs), "--state", "damaged", "--yes"]) == 0
    assert not (runs / "damaged").exists()
    assert (target / "config.yaml").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "error: ROOT=nowhere: no such folder"),
        (["--state", "lost"], "'lost' is not known; allowed: running, finished"),
        (["--older-than", "-1"], "'-1' is not a number of days"),
        (["--sort", "size"], "invalid choice: 'size'"),
        (["diff", "a"], "required: RUN"),
    ],
)
def test_bad_input(words, line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["runs", *words])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    err = capsys.readouterr().err
    assert line in err
    assert len(err.splitlines()) == 1


def test_no_runs_at_all(tmp_path, capsys):
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no runs\n"
    assert main(["runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_each_start_leaves_what_made_it(quick, tmp_path):
    words = ("train.epochs=1", "model.width_mult=0.35")
    train(quick(*words), overrides=words)
    (run,) = read_runs(tmp_path / "runs")
    assert run.command == "python train.py train.epochs=1 model.width_mult=0.35"
    assert run.provenance["versions"]["torch"]
    (run.path / "results.json").unlink()
    train(quick(*words))
    starts = json.loads((run.path / "provenance.json").read_text())["starts"]
    assert [start["command"] for start in starts] == [run.command, None]
    assert [start["job_type"] for start in starts] == ["train", "train"]
    # of a start from Python, the command of the one before
    assert read_run(run.path).command == run.command


def test_kinds(tmp_path):
    start = {"job_type": "bench"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "provenance.json").write_text(json.dumps({"starts": [start]}))
    for name in ("bench-20260101-000000", "eval-v2-fake", "v2-w1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "wandb.json").write_text('{"name": null, "group": null}')
    kinds = {run.name: run.kind for run in read_runs(tmp_path)}
    assert kinds == {
        "mine": "bench", "bench-20260101-000000": "bench", "eval-v2-fake": "eval", "v2-w1": "train",
    }  # fmt: skip


def test_numbers_and_anchors_that_no_file_should_hold(finished, tmp_path, capsys):
    """An integer of 400 digits, an anchor that holds itself: that run alone suffers."""
    _, _, folder = finished
    huge = "1" + 400 * "0"
    for name in ("results", "metrics", "yaml", "whole"):
        shutil.copytree(folder, tmp_path / name)
    text = (tmp_path / "results" / "results.json").read_text()
    text = re.sub(r'"top1": [\d.]+', f'"top1": {huge}', text, count=1)
    (tmp_path / "results" / "results.json").write_text(text)
    with (tmp_path / "metrics" / "metrics.jsonl").open("a") as file:
        file.write(f'{{"epoch": 3, "val/top1": {huge}}}\n')
    (tmp_path / "yaml" / "config.yaml").write_text("model: &m {a: *m}\ndata: {}\nrun: {}\n")
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("finished") >= 4
    assert main(["page", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
