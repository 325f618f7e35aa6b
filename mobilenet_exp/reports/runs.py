"""`python -m mobilenet_exp runs`: lists runs, says how two differ, removes left-overs."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.text import as_csv, duration, figure, plural, printable
from mobilenet_exp.machine.lock import locked
from mobilenet_exp.reports.options import Parser
from mobilenet_exp.reports.reading import (
    STATES,
    RunFolder,
    age,
    find_run,
    flat,
    is_own,
    number,
    read_run,
    read_runs,
)

ROOT = "runs"
# what a list can be sorted by: the smallest key first, with --reverse the largest
SORTS: dict[str, Callable[[RunFolder], Any]] = {
    "age": age,
    "name": lambda run: run.name,
    "state": lambda run: STATES.index(run.state),
    "top1": lambda run: _falling(run.figure("top1")),
    "gap": lambda run: _falling(run.gap),
    "epochs": lambda run: _falling(run.figure("epochs")),
    "madds": lambda run: _falling(run.figure("madds")),
}
# the results that two runs are compared by
FIGURES = ("top1", "top5", "best_epoch", "epochs", "seconds", "madds", "params", "peak_memory_mb")
MEGABYTE = 1e6
# how the folder of a run is called while it is removed
AWAY = ".removed-"


def _falling(value: float | None) -> tuple[bool, float]:
    """Return a key that sorts the largest first and those without a value last."""
    return value is None, -(value or 0.0)


def main(args: list[str]) -> None:
    """Run `runs`, `runs diff` or `runs prune`."""
    name = args[0] if args and args[0] in ("diff", "prune") else ""
    arguments = _parser(name).parse_args(args[1:] if name else args)
    if name == "diff":
        print_differences(*(find_run(Path(arguments.root), word) for word in arguments.runs))
    elif name == "prune":
        runs = _chosen(arguments)
        # what an earlier one could not remove
        for away in Path(arguments.root).glob(f"{AWAY}*"):
            if why := _clear(away):
                console.line(f"{printable(away.name)} stays: {why}")
        if not arguments.state:
            runs = [run for run in runs if run.state != "finished" and not _holds_work(run)]
        prune(runs, may_ask=not arguments.yes)
    else:
        show = print_json if arguments.json else print_csv if arguments.csv else print_list
        show(_chosen(arguments))


def _parser(name: str) -> argparse.ArgumentParser:
    about = {
        "": "List the runs in a folder. `runs diff A B` says what differs between two of them, "
        "`runs prune` removes those that led to nothing.",
        "diff": "Say what differs between two runs: their configurations, results, versions. "
        "A run is named by its folder, its name, or a part of that.",
        "prune": "Remove the folders of runs that ended without results and left no "
        "checkpoint; with --state, of all runs in these states. Asks first, and never touches a "
        "run in progress.",
    }[name]
    parser = Parser(prog=f"python -m mobilenet_exp runs {name}".strip(), description=about)
    if name == "diff":
        parser.add_argument("runs", nargs=2, metavar="RUN")
        parser.add_argument("--root", default=ROOT, help="folder of the runs (default: runs)")
        return parser
    parser.add_argument("root", nargs="?", default=ROOT, help="folder of the runs (default: runs)")
    parser.add_argument("--state", type=_states, default=(), help=f"of {', '.join(STATES)}")
    for key in ("model", "data", "sweep"):
        parser.add_argument(f"--{key}", help=f"only runs of this {key}")
    parser.add_argument("--name", help="only runs whose name holds this text")
    parser.add_argument("--older-than", type=_days, metavar="DAYS", help="not written to since")
    parser.add_argument("--sort", choices=SORTS, default="age", help="(default: age)")
    parser.add_argument("--reverse", action="store_true", help="the last one first")
    if name == "prune":
        parser.add_argument("--yes", action="store_true", help="do not ask")
    else:
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.add_argument("--csv", action="store_true", help="print CSV")
    return parser


def _states(word: str) -> tuple[str, ...]:
    found = tuple(word.split(","))
    if unknown := set(found) - set(STATES):
        raise argparse.ArgumentTypeError(
            f"{min(unknown)!r} is not known; allowed: {', '.join(STATES)}"
        )
    return found


def _days(word: str) -> float:
    try:
        days = float(word)
    except ValueError:
        days = -1.0
    if not days >= 0:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number of days")
    return days


def _chosen(arguments: argparse.Namespace) -> list[RunFolder]:
    """Return the runs that the options ask for, in the order they ask for."""
    found = []
    for run in read_runs(Path(arguments.root)):
        row = row_of(run)
        wanted = all(
            getattr(arguments, key) in (None, row[key]) for key in ("model", "data", "sweep")
        )
        wanted = wanted and (not arguments.state or run.state in arguments.state)
        wanted = wanted and (arguments.name or "") in run.name
        if arguments.older_than is not None:
            wanted = wanted and age(run) >= arguments.older_than * 86_400
        found += [run] if wanted else []
    return sorted(found, key=SORTS[arguments.sort], reverse=arguments.reverse)


def row_of(run: RunFolder) -> dict[str, Any]:
    """Return what a list says about a run; accuracies in percent, None where unknown."""

    def setting(key: str, name: str) -> Any:
        return run.results.get(key, run.setting(name))

    return {
        "name": run.name,
        "kind": run.kind,
        "state": run.state,
        "problem": run.problem,
        "model": setting("model", "model.name"),
        "width_mult": setting("width_mult", "model.width_mult"),
        "data": setting("data", "data.name"),
        "resolution": setting("resolution", "data.resolution"),
        "top1": run.figure("top1"),
        "paper_top1": number(run.paper.get("top1")),
        "gap": run.gap,
        "epochs": run.figure("epochs"),
        "epochs_planned": run.setting("train.epochs"),
        "madds": run.figure("madds"),
        "params": run.figure("params"),
        "seconds": run.figure("seconds"),
        "age_seconds": round(age(run)),
        "sweep": run.sweep,
        "command": run.command,
    }


def print_list(runs: Sequence[RunFolder]) -> None:
    """Print a line for each run."""
    if not runs:
        console.line("no runs")
        return
    rows = []
    for run in runs:
        row = row_of(run)
        epochs = figure(row["epochs"], 0)
        if run.state != "finished" and row["epochs_planned"]:
            epochs += f"/{row['epochs_planned']}"
        state = run.state if run.kind == "train" else f"{run.kind}, {run.state}"
        rows.append(
            (
                printable(run.name),
                state,
                figure(row["top1"]),
                figure(row["gap"], sign=True),
                epochs,
                duration(row["age_seconds"]),
                printable(run.sweep) or "-",
            )
        )
    columns = ("run", "state", "top-1 %", "gap", "epochs", "age", "sweep")
    notes = [f"{printable(run.name)}: {printable(run.problem)}" for run in runs if run.problem]
    console.table(plural(len(runs), "run"), columns, rows, notes)


def print_json(runs: Sequence[RunFolder]) -> None:
    """Print a list of objects, one for each run."""
    console.raw(json.dumps([_sendable(row_of(run)) for run in runs], indent=2) + "\n")


def print_csv(runs: Sequence[RunFolder]) -> None:
    """Print a table with a header."""
    rows = [_sendable(row_of(run)) for run in runs]
    cells = [["" if cell is None else cell for cell in row.values()] for row in rows]
    console.raw(as_csv([list(row) for row in rows[:1]] + cells))


def _sendable(row: dict[str, Any]) -> dict[str, Any]:
    return {key: printable(cell) if isinstance(cell, str) else cell for key, cell in row.items()}


def differences(ours: RunFolder, theirs: RunFolder) -> list[tuple[str, str, str]]:
    """Return the keys in which two runs differ, with both values as text."""
    found = []
    for one, other in (
        (flat(ours.config), flat(theirs.config)),
        (_results_of(ours), _results_of(theirs)),
        (_made_by(ours), _made_by(theirs)),
    ):
        for key in [*one, *(key for key in other if key not in one)]:
            values = one.get(key, "-"), other.get(key, "-")
            if values[0] != values[1]:
                found.append((key, _word(values[0]), _word(values[1])))
    return found


def _results_of(run: RunFolder) -> dict[str, Any]:
    return {key: value for key in FIGURES if (value := run.figure(key)) is not None}


def _made_by(run: RunFolder) -> dict[str, Any]:
    """Return what else may make a difference: commit, versions, processor."""
    made_by = {**run.provenance, "started": None, "command": None}
    return {key: value for key, value in flat(made_by).items() if value is not None}


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "null" if value is None else printable(str(value))


def print_differences(ours: RunFolder, theirs: RunFolder) -> None:
    """Print what differs between two runs."""
    rows = differences(ours, theirs)
    if not rows:
        console.line(f"{printable(ours.name)} and {printable(theirs.name)} do not differ")
        return
    title = f"{plural(len(rows), 'difference')} of A and B"
    names = [f"{key}: {printable(run.name)}" for key, run in (("A", ours), ("B", theirs))]
    console.table(title, ("", "A", "B"), rows, names)


def prune(runs: Sequence[RunFolder], *, may_ask: bool) -> None:
    """Remove the folders of runs, after a person has agreed; those in progress stay.

    Raises InputError where there is no terminal to ask on.
    """
    # folders without a mark of ours may be anybody's
    going = [run for run in runs if run.state != "running" and is_own(run.path)]
    if not going:
        console.line("nothing to remove")
        return
    for run in going:
        state = f"{run.state}, {duration(age(run))} old, {_size(run.path) / MEGABYTE:.1f} MB"
        console.line(f"{printable(str(run.path))}  {state}")
    if may_ask and not _agreed(f"remove {plural(len(going), 'folder')}?"):
        console.line("nothing removed")
        return
    left = {run.name: why for run in going if (why := _remove(run))}
    for name, why in left.items():
        console.line(f"{printable(name)} stays: {why}")
    console.line(f"removed {plural(len(going) - len(left), 'folder')}")


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise InputError("--yes", "", "is needed where there is no terminal to ask on")
    try:
        return input(f"{question} [y/N] ").strip().lower() == "y"
    except EOFError:
        return False


def _remove(run: RunFolder) -> str:
    """Remove a run's folder, and return "" or why it stays."""
    away = run.path.with_name(f"{AWAY}{run.name}-{os.getpid()}")
    try:
        with locked(run.path):
            now = read_run(run.path)
            # while a person thought about it
            if now.changed != run.changed:
                return "it was written to meanwhile"
            # out of the way at once: a run that starts now has a folder of its own
            run.path.rename(away)
    except InputError as error:
        return error.problem
    except OSError as error:
        return error.strerror or type(error).__name__
    return _clear(away)


def _clear(away: Path) -> str:
    """Remove a folder that is out of the way, and return "" or what is left of it."""
    try:
        if away.is_symlink():
            away.unlink()
        else:
            shutil.rmtree(away)
    except OSError as error:
        why = error.strerror or type(error).__name__
        return f"in part, as {away.name}: {why}; the next prune tries again"
    return ""


def _holds_work(run: RunFolder) -> bool:
    """Return whether a run has a checkpoint, or evaluations that are done."""
    checkpoints = any((run.path / "checkpoints").glob("*.pt"))
    return checkpoints or any(each.state == "finished" for each in run.evals)


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
