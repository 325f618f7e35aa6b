"""Reads the run folders of a `runs/`, complete or not, of this version or another.

A value of an unexpected type counts as missing. Every other report starts from what is read
here.
"""

import csv
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.machine.lock import is_locked
from mobilenet_exp.tracking.sweeps import Sweep

# in the order in which a list of runs shows them
STATES = ("running", "finished", "stopped", "failed", "damaged")
KINDS = ("train", "eval", "bench")
# folders of `runs/` that hold no runs
OTHER_FOLDERS = ("sweeps", "wandb")
# sections of a run's configuration
SECTIONS = {"model", "data", "run"}
# files whose times say when a run was last written; readers take the lock, too
WRITTEN = (
    "config.yaml", "metrics.jsonl", "provenance.json", "wandb.json", "results.json", "latency.json",
    "error.txt", "checkpoints", "best",
)  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    """A run as its folder tells it; each part is empty where its file is missing or damaged.

    `kind` is train, eval or bench; `state` one of STATES; `problem` one line on what is
    wrong, or "". `evals` are the evaluations of its checkpoints.
    """

    path: Path
    kind: str
    state: str
    problem: str
    results: dict[str, Any]
    sweep: str = ""
    evals: tuple["RunFolder", ...] = field(default=())

    @property
    def name(self) -> str:
        """Return the folder's name, which is the run's."""
        return self.path.name

    @cached_property
    def config(self) -> dict[str, Any]:
        """Return the configuration as it is written, by section."""
        return _read_yaml(self.path / "config.yaml")

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Return the figures of each epoch, those of a row that was cut off left out."""
        return _read_lines(self.path / "metrics.jsonl", "epoch")

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """Return the points of the curves by step."""
        return _read_lines(self.path / "metrics.jsonl", "step")

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """Return what each start was made by, the first one first."""
        return _starts(self.path)

    @property
    def provenance(self) -> dict[str, Any]:
        """Return what the last start was made by: command, commit, versions, processor."""
        return self.starts[-1] if self.starts else {}

    @property
    def command(self) -> str:
        """Return the last command that made the run and so repeats it, or ""."""
        commands = (text(start.get("command")) for start in reversed(self.starts))
        return next(filter(None, commands), "")

    @cached_property
    def changed(self) -> float:
        """Return when a file of the run was last written, in seconds since 1970."""
        times = [_time(self.path / name) for name in WRITTEN]
        return max(times) or _time(self.path)

    def setting(self, key: str) -> Any:
        """Return a value of the configuration by its whole key, as `data.name`, or None."""
        section, _, name = key.partition(".")
        values = self.config.get(section)
        return values.get(name) if isinstance(values, dict) else None

    def figure(self, key: str) -> float | None:
        """Return a number of the results; of an unfinished run, what its epochs say so far."""
        value = number(self.results.get(key))
        if value is None and not self.results:
            value = self._so_far().get(key)
        return value

    def _so_far(self) -> dict[str, float | None]:
        """Return the best epoch so far, and how many there are."""
        if not self.rows:
            return {}
        scored = [(val_top1(row), index) for index, row in enumerate(self.rows)]
        best = max(scored, key=lambda each: (-1.0 if each[0] is None else each[0], -each[1]))
        row = self.rows[best[1]]
        last = number(self.rows[-1].get("epoch"))
        if best[0] is None:
            return {"epochs": last}
        top5 = row.get("val_ema/top5", row.get("val/top5"))
        found = {"top1": best[0], "top5": top5, "best_epoch": row.get("epoch"), "epochs": last}
        return {key: number(value) for key, value in found.items()}

    @property
    def paper(self) -> dict[str, Any]:
        """Return the published row of the net, comparable or not, or an empty dict."""
        reference = self.results.get("reference")
        row = reference.get("row") if isinstance(reference, dict) else None
        return row if isinstance(row, dict) else {}

    @property
    def gap(self) -> float | None:
        """Return top-1 minus the paper's in points; None where they do not compare."""
        ours, theirs = self.figure("top1"), number(self.paper.get("top1"))
        if ours is None or theirs is None or not self.results.get("paper"):
            return None
        return ours - theirs


def number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # integers of JSON may be larger than any float
    return value if is_number and abs(value) <= sys.float_info.max else None


def text(value: Any) -> str:
    """Return a text, or "" for anything else."""
    return value if isinstance(value, str) else ""


def val_top1(row: dict[str, Any]) -> float | None:
    """Return the validation top-1 that counts in an epoch: that of averaged weights if any."""
    return number(row.get("val_ema/top1", row.get("val/top1")))


def read_runs(root: Path) -> list[RunFolder]:
    """Return the runs in a folder, the last written one first.

    Raises InputError if there is no such folder; a folder without runs gives none.
    """
    if not os.path.isdir(root):
        raise InputError("ROOT", root, "no such folder; training writes runs/ where it is started")
    sweeps = sweeps_of(root)
    folders = (path for path in _folders(root) if path.name not in OTHER_FOLDERS)
    found = [read_run(path, sweeps.get(path.name, "")) for path in folders if is_run(path)]
    return sorted(found, key=lambda run: run.changed, reverse=True)


def is_run(path: Path) -> bool:
    """Return whether a folder is a run's."""
    return is_own(path) or bool(_read_json(path / "results.json").keys() & {"top1", "top5"})


def is_own(path: Path) -> bool:
    """Return whether a folder holds what no other program writes there."""
    return (
        bool(_starts(path))
        or _read_json(path / "wandb.json").keys() >= {"name", "group"}
        or any("train/loss" in row for row in _read_lines(path / "metrics.jsonl", "epoch"))
        or _read_yaml(path / "config.yaml").keys() >= SECTIONS
    )


def read_run(path: Path, sweep: str = "") -> RunFolder:
    """Read one run's folder, and its evaluations'."""
    evals = tuple(read_run(each) for each in _folders(path / "eval") if is_run(each))
    kind = _kind(path)
    results, problem = _results(path / ("latency.json" if kind == "bench" else "results.json"))
    state, problem = _state(path, results, problem)
    group = text(_read_json(path / "wandb.json").get("group"))
    return RunFolder(path, kind, state, problem, results, group or sweep, evals)


def _kind(path: Path) -> str:
    """Return the kind of a run, from its first start or from its name."""
    if path.parent.name == "eval":
        return "eval"
    starts = _starts(path)
    kind = starts[0].get("job_type") if starts else None
    by_name = next((kind for kind in KINDS if path.name.startswith(f"{kind}-")), "train")
    return kind if kind in KINDS else by_name


def _starts(path: Path) -> list[dict[str, Any]]:
    """Return what each start of a run was made by, the first one first."""
    starts = _read_json(path / "provenance.json").get("starts")
    return [each for each in starts if isinstance(each, dict)] if isinstance(starts, list) else []


def _state(path: Path, results: dict[str, Any], problem: str) -> tuple[str, str]:
    if is_locked(path):
        return "running", ""
    if problem:
        return "damaged", problem
    if results:
        return "finished", ""
    error = path / "error.txt"
    if os.path.exists(error):
        return "failed", _last_line(error)
    return "stopped", ""


def sweeps_of(root: Path) -> dict[str, str]:
    """Return the sweep that each run belongs to, by the run's name, from the sweeps' records."""
    found: dict[str, str] = {}
    for folder in _folders(root / "sweeps"):
        try:
            group, jobs = Sweep(folder).group, sorted(folder.glob("job-*.json"))
        except (OSError, KeyError, TypeError):
            # no sweep's
            continue
        for job in jobs:
            results = _read_json(job).get("results")
            if isinstance(results, dict):
                found[text(results.get("name"))] = text(group)
    return found


def find_run(root: Path, word: str) -> RunFolder:
    """Return the run that a word means: its folder, its name, or a part of that.

    Raises InputError where there is none, or more than one.
    """
    for path in (Path(word), root / word):
        if os.path.isdir(path) and is_run(path):
            return read_run(path, sweeps_of(root).get(path.name, ""))
    names = [path.name for path in _folders(root) if is_run(path)]
    fitting = [name for name in names if word in name]
    if len(fitting) == 1:
        return read_run(root / fitting[0], sweeps_of(root).get(fitting[0], ""))
    if not fitting:
        raise InputError("RUN", word, f"no run in {root} has this name; `runs` lists them")
    few = ", ".join(fitting[:3]) + (", ..." if len(fitting) > 3 else "")
    raise InputError("RUN", word, f"means {len(fitting)} runs: {few}; write more of the name")


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration's values by whole keys, as `optimizer.lr`."""
    found: dict[str, Any] = {}
    for section, values in config.items():
        if isinstance(values, dict):
            found |= {f"{section}.{key}": value for key, value in flat(values).items()}
        else:
            found[section] = values
    return found


def age(run: RunFolder, now: float | None = None) -> float:
    """Return the seconds since a run was last written to."""
    return max(0.0, (time.time() if now is None else now) - run.changed)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table that a run has left, or none."""
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            return list(csv.DictReader(file))
    except (OSError, csv.Error):
        return []


def _folders(root: Path) -> Iterator[Path]:
    """Yield the folders of a folder, except hidden and unreadable ones."""
    try:
        names = sorted(os.listdir(root))
    except OSError:
        return
    for name in names:
        if not name.startswith(".") and os.path.isdir(root / name):
            yield root / name


def _results(path: Path) -> tuple[dict[str, Any], str]:
    """Return the content of a results file, and what is wrong with it."""
    if not os.path.exists(path):
        return {}, ""
    found = _read_json(path)
    return found, "" if found else f"{path.name} is damaged"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_yaml(path: Path) -> dict[str, Any]:
    # several times as fast, where it was built
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        found = yaml.load(path.read_text(encoding="utf-8", errors="replace"), loader)
        # an anchor may hold itself, which JSON cannot
        json.dumps(found, default=str)
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_lines(path: Path, axis: str) -> list[dict[str, Any]]:
    """Return the rows of a metrics file that have a number under `axis`."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and number(row.get(axis)) is not None:
            rows.append(row)
    return rows


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
