"""The text that a training prints: a line per epoch, notes, and the tables at the end."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from mobilenet_exp.core import console
from mobilenet_exp.core.files import from_here
from mobilenet_exp.core.text import examples, figure, plural

MILLION = 1e6
# figures of the validation images that every epoch has
SCORES = ("top1", "top5", "loss", "ece", "num_images")
PRECISION = "run.precision="
SWEEP_COLUMNS = ("top-1 %", "madds M", "params M")
# the rows of a comparison: key of a published row, and its name
ROWS = {"top1": "top-1 %", "top5": "top-5 %", "madds_m": "madds M", "params_m": "params M"}


def epoch_line(epoch: int, epochs: int, row: dict[str, float]) -> str:
    """Return the figures of an epoch on one line; accuracies in percent."""
    average = f"  averaged {row['val_ema/top1']:6.2f}" if "val_ema/top1" in row else ""
    section = "val_ema/" if average else "val/"
    # those of run.metrics
    own = [key for key in row if key.startswith(section) and key[len(section) :] not in SCORES]
    more = "".join(f"  {key[len(section) :]} {row[key]:.4g}" for key in own)
    skipped = f"  {row['train/num_skipped']} skipped" if row.get("train/num_skipped") else ""
    scores = "  not evaluated".ljust(31)
    if "val/top1" in row:
        scores = f"  val top-1 {row['val/top1']:6.2f} top-5 {row['val/top5']:6.2f}"
    return (
        f"epoch {epoch:>{len(str(epochs))}}/{epochs}"
        f"  loss {figure(row.get('train/loss'), 3)}{skipped}"
        f"{scores}{average}{more}"
        f"  lr {row['train/lr']:.1e}  {figure(row.get('speed/images_per_s'), 0)} images/s"
        f"  {figure(row.get('speed/waiting_percent'), 0)} % waiting"
    )


def note_lines(row: dict[str, float], left_out: Mapping[str, str]) -> list[str]:
    """Say which images of an epoch were left out, or lie on their side.

    `left_out` names those of the run so far.
    """
    lines = []
    if count := int(row.get("data/num_left_out", 0)):
        lines.append(f"  {plural(count, 'image')} left out; so far: {examples(left_out)}")
    count = int(row.get("data/num_unturned", 0))
    if count and row["epoch"] == 1:
        lie = "is on its side" if count == 1 else "are on their sides"
        lines.append(
            f"  {plural(count, 'image')} {lie} by EXIF orientation; data.exif=apply turns them"
        )
    return lines


def print_next(folder: Path, root: str) -> None:
    """Name the commands that go on from a finished run."""
    shown = from_here(folder)
    console.line(f"curves, what the best epoch answered, worst images: {shown}")
    console.line(f"next: python eval.py checkpoint={quote(f'{shown}/checkpoints/best.pt')}")
    console.line(f"      python -m mobilenet_exp page {quote(root)}")


def print_comparison(results: dict[str, Any]) -> None:
    """Print a finished run beside its published row: accuracies and exact counts.

    Where the run is not the row's own experiment, the counts compared are those of the
    same net as published, and no accuracies are subtracted.
    """
    title = f"{results['model']} {results['width_mult']:g} on {results['data']}"
    run = f"this run\n{results['resolution']} px\n{results['num_classes']} classes"
    own = [results["top1"], results["top5"], *millions(results)]
    columns, cells = [run], [_column(own)]
    notes = [
        f"best epoch {results['best_epoch']} of {results['epochs']}, "
        f"last epoch top-1 {figure(results['last_top1'])}, {results['seconds']} s"
        + (f", {results['peak_memory_mb']:,.0f} MB at most" if results["peak_memory_mb"] else "")
    ]
    if results["paper_reason"]:
        notes.append(f"not compared: {results['paper_reason']}")
    if results["reference"]:
        row, delta = results["reference"]["row"], results["reference"]["delta"]
        if not results["paper"]:
            columns.append(f"same net\n{row['resolution']} px\n1000 classes")
            cells.append(_column([None, None, *millions(results["reference"]["counted"])]))
        columns += [f"{row['source']}\n{row['resolution']} px\nImageNet", "gap"]
        cells.append([printed(row[key]) for key in ROWS])
        cells.append(_column([delta.get(key) for key in ROWS], sign=True))
        notes.append(f"{row['source']}: {row['citation']}")
        if row["unreached"]:
            notes.append(f"the published figure cannot be reproduced: {row['unreached']}")
    console.table(title, ("", *columns), zip(ROWS.values(), *cells, strict=True), notes)


def _column(values: Sequence[float | None], *, sign: bool = False) -> list[str]:
    digits = (2, 2, 2, 3)
    return [figure(value, n, sign=sign) for value, n in zip(values, digits, strict=True)]


def printed(value: float | None) -> str:
    """Format a published figure with the digits that it was published with."""
    return "-" if value is None else f"{value:g}"


def millions(counts: dict[str, int]) -> list[float]:
    """Return multiply-adds and parameters in millions."""
    return [counts["madds"] / MILLION, counts["params"] / MILLION]


def print_sweep(jobs: Sequence[dict[str, Any]], not_begun: Sequence[tuple[str, ...]] = ()) -> None:
    """Print one table of all jobs of a sweep, as its folder records them.

    `not_begun` are the overrides of those that a stop has kept from starting.
    """
    planned = [*(job["overrides"] for job in jobs), *not_begun]
    common = set.intersection(*map(set, planned))
    columns = ("run", *(f"{side}\n{what}" for side in ("ours", "paper") for what in SWEEP_COLUMNS))
    notes = ["paper: published for the same net and width, on ImageNet with 1000 classes"]
    for job in jobs:
        if job["error"]:
            state = "stopped" if job["is_stopped"] else "failed"
            notes.append(f"job {job['number']} {state}: {job['error']}")
        asked = next(
            (
                word.removeprefix(PRECISION)
                for word in job["overrides"]
                if word.startswith(PRECISION)
            ),
            "auto",
        )
        done = (job["results"] or {}).get("precision", asked)
        if asked not in ("auto", done):
            label = _sweep_label(job["overrides"], common)
            notes.append(
                f"{label}: computed in {done}; run.* does not name a run, run.root=... does"
            )
    if not_begun:
        notes.append(f"{plural(len(not_begun), 'run')} not begun; repeat the command to go on")
    reasons = {job["results"]["paper_reason"] for job in jobs if job["results"]} - {None}
    notes += [f"not compared: {reason}" for reason in sorted(reasons)]
    rows = [(_sweep_label(job["overrides"], common), *_sweep_figures(job)) for job in jobs]
    rows += [(_sweep_label(each, common), "not begun", *["-"] * 5) for each in not_begun]
    console.table(f"sweep of {plural(len(planned), 'run')}", columns, rows, notes)


def _sweep_label(overrides: Sequence[str], common: set[str]) -> str:
    # model=v2 reads v2 and model.width_mult=0.5 reads width_mult=0.5: the column is narrow
    varied = [word.lstrip("+") for word in overrides if word not in common]
    label = " ".join(re.sub(r"^(?:\w+=(?:\w+/)*|(?:\w+\.)+)", "", word) for word in varied)
    # a search's numbers have more digits than the column
    return re.sub(r"\d+\.\d{6,}", lambda number: f"{float(number[0]):.4g}", label) or "defaults"


def _sweep_figures(job: dict[str, Any]) -> Sequence[str]:
    results = job["results"]
    if results is None:
        return ("stopped" if job["is_stopped"] else "failed", *["-"] * 5)
    row = (results["reference"] or {}).get("row")
    published = [row["top1"], row["madds_m"], row["params_m"]] if row else [None] * 3
    return (
        figure(results["top1"]),
        figure(results["madds"] / MILLION),
        figure(results["params"] / MILLION, 3),
        *map(printed, published),
    )
