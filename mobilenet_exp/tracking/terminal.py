"""What a run prints: its opening, a line an epoch, and the tables at the end.

Reads plain results; builds and measures nothing.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilenet_exp.core import console
from mobilenet_exp.core.console import figure

MILLION = 1e6
SWEEP_COLUMNS = ("top-1 %", "madds M", "params M")
# the rows of a comparison: key of a published row, and its name
ROWS = {"top1": "top-1 %", "top5": "top-5 %", "madds_m": "madds M", "params_m": "params M"}


def announce(
    folder: Path, status: str, device: object, profile: Any, epoch: int, update: int = 0
) -> None:
    """Say where the run lives, on what it runs and how large the net is."""
    resumed = f", resumed after epoch {epoch}" if epoch or update else ""
    resumed += f", update {update}" if update else ""
    console.line(f"{folder} on {device}{resumed}")
    console.line(f"{profile.madds / MILLION:.2f} M madds, {profile.params / MILLION:.3f} M params")
    console.line(status)


def epoch_line(epoch: int, epochs: int, row: dict[str, float]) -> str:
    """Return an epoch's figures on one line; accuracies in percent."""
    average = f"  averaged {row['val_ema/top1']:6.2f}" if "val_ema/top1" in row else ""
    skipped = f"  {row['train/num_skipped']} skipped" if row.get("train/num_skipped") else ""
    return (
        f"epoch {epoch:>{len(str(epochs))}}/{epochs}"
        f"  loss {figure(row.get('train/loss'), 3)}{skipped}"
        f"  val top-1 {row['val/top1']:6.2f} top-5 {row['val/top5']:6.2f}{average}"
        f"  lr {row['train/lr']:.1e}  {figure(row.get('train/images_per_s'), 0)} images/s"
    )


def print_comparison(results: dict[str, Any]) -> None:
    """Print a finished run beside its published row: accuracies and exact counts.

    Where the run is not the row's own experiment, the counts compared are those of the
    same net as published, and no accuracies are subtracted.
    """
    title = f"{results['model']} {results['width_mult']:g} on {results['data']}"
    run = f"this run\n{results['resolution']} px\n{results['num_classes']} classes"
    own = [results["top1"], results["top5"], *_millions(results)]
    columns, cells = [run], [_column(own)]
    notes = [
        f"best epoch {results['best_epoch']} of {results['epochs']}, "
        f"last epoch top-1 {figure(results['last_top1'])}, {results['seconds']} s"
    ]
    if results["paper_reason"]:
        notes.append(f"not compared: {results['paper_reason']}")
    if results["reference"]:
        row, delta = results["reference"]["row"], results["reference"]["delta"]
        if not results["paper"]:
            columns.append(f"same net\n{row['resolution']} px\n1000 classes")
            cells.append(_column([None, None, *_millions(results["reference"]["counted"])]))
        columns += [f"{row['source']}\n{row['resolution']} px\nImageNet", "gap"]
        cells.append([_printed(row[key]) for key in ROWS])
        cells.append(_column([delta.get(key) for key in ROWS], sign=True))
        notes.append(f"{row['source']}: {row['citation']}")
        if row["unreached"]:
            notes.append(f"print not reached: {row['unreached']}")
    console.table(title, ("", *columns), zip(ROWS.values(), *cells, strict=True), notes)


def _column(values: Sequence[float | None], *, sign: bool = False) -> list[str]:
    digits = (2, 2, 2, 3)
    return [figure(value, n, sign=sign) for value, n in zip(values, digits, strict=True)]


def _printed(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _millions(counts: dict[str, int]) -> list[float]:
    return [counts["madds"] / MILLION, counts["params"] / MILLION]


def print_subject(origin: str, notes: Sequence[str], preprocessing: str) -> None:
    """Say which weights are evaluated, and how they and their images are treated."""
    console.line(origin)
    for note in (*notes, preprocessing):
        console.line(f"  {note}")


def print_evaluation(results: dict[str, Any], folder: Path, status: str) -> None:
    """Print what was scored beside its published row, and what was odd about the images."""
    row = (results["reference"] or {}).get("row") or {}
    delta = dict((results["reference"] or {}).get("delta") or {})
    if row and results["madds"] != results["reference"]["counted"]["madds"]:
        # another net or another side than the row's: no gap in counts either
        delta = {key: value for key, value in delta.items() if key.startswith("top")}
    rows = [
        (
            ROWS[key],
            figure(results[key] if key.startswith("top") else results[key[:-2]] / MILLION, digits),
            _printed(row.get(key)),
            figure(delta.get(key), digits, sign=True),
        )
        for key, digits in (("top1", 2), ("top5", 2), ("madds_m", 2), ("params_m", 3))
    ]
    rows += [
        (name, figure(results[key], digits), "-", "-")
        for name, key, digits in (("loss", "loss", 4), ("ECE %", "ece", 2))
    ]
    if results["real"]:
        rows.append(("ReaL top-1 %", figure(results["real"]["top1"]), "-", "-"))
    rows.append(("images", str(results["num_images"]), "-", "-"))
    notes = [f"not compared: {results['paper_reason']}"] if results["paper_reason"] else []
    if row:
        notes.append(f"{row['source']}: {row['citation']}")
        if row["madds_as_printed"] != row["madds"]:
            counted = figure(row["madds_as_printed"] / MILLION)
            notes.append(f"it counts madds otherwise: {counted} M of the same net, hence the gap")
    notes += _odd_images(results)
    title = f"{results['model']} {results['width_mult']:g} on {results['data']}"
    console.table(title, ("", "here", "published", "gap"), rows, notes)
    for label, answer, images in results["most_confused"][:3]:
        console.line(f"{images} of {label} taken for {answer}")
    console.line(status)
    folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    console.line(f"results.json, per_class.csv, confusion.csv in {folder}")


def _odd_images(results: dict[str, Any]) -> list[str]:
    """Count what was left out and converted by its reason, and name the first few."""
    lines = []
    for found, words in (
        (results["left_out"], "LEFT OUT"),
        (results["converted"], "converted and scored"),
    ):
        if not found:
            continue
        names = ", ".join(f"{name} ({reason})" for name, reason in list(found.items())[:3])
        more = ", ..." if len(found) > 3 else ""
        lines.append(f"{_images(len(found))} {words}: {names}{more}; all in odd_images.csv")
    if results["num_missing"]:
        lines.append(f"{_images(results['num_missing'])} of the labels MISSING in the folder")
    if results["num_left_out"] or results["num_missing"]:
        lines.append("not every image was scored: exit code 3")
    return lines


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def print_photos(
    answers: Sequence[tuple[str, str, list[tuple[str, float]]]], unread: dict[str, str]
) -> None:
    """Print the best five names of each photo with their probabilities."""
    for photo, note, guesses in answers:
        title = f"{photo} ({note})" if note else photo
        rows = [(name, figure(share)) for name, share in guesses]
        console.table(title, ("", "%"), rows)
    for photo, reason in unread.items():
        console.line(f"LEFT OUT: {photo} {reason}")


def print_latency(
    rows: Sequence[dict[str, Any]], resolution: int, rounds: int, device: Any
) -> None:
    """Print median and spread of a forward per net and batch size, and what they count."""
    columns = ("", "ms", "min", "max", "ratio", "madds M", "params M", "old ms")
    for size in dict.fromkeys(row["batch_size"] for row in rows):
        nets = [row for row in rows if row["batch_size"] == size]
        cells = [
            (
                row["model"].removeprefix("torchvision:"),
                *(figure(row[key], 1) for key in ("latency_ms", "fastest_ms", "slowest_ms")),
                figure(row["latency_ms"] / nets[0]["latency_ms"]),
                figure(row["madds"] / MILLION, 1),
                figure(row["params"] / MILLION),
                figure(row["old_ms"], 1),
            )
            for row in nets
        ]
        console.table(f"batch {size}, {resolution} px, on {device}", columns, cells)
    console.line(
        f"ms of one batch's forward, eval mode: median, min and max of {rounds} "
        "interleaved rounds after warm-up; ratio to the first net; madds of one image"
    )
    console.line(
        "old ms: printed by marvis/pytorch-mobilenet for a Titan X; one unsynchronised call in "
        "training mode, so launch time: not comparable"
    )


def print_sweep(jobs: Sequence[dict[str, Any]]) -> None:
    """Print one table of all jobs of a sweep, as its folder records them."""
    common = set.intersection(*(set(job["overrides"]) for job in jobs))
    columns = ("run", *(f"{side}\n{what}" for side in ("ours", "paper") for what in SWEEP_COLUMNS))
    notes = ["paper: published for the same net and width, on ImageNet with 1000 classes"]
    notes += [f"job {job['number']} failed: {job['error']}" for job in jobs if job["error"]]
    reasons = {job["results"]["paper_reason"] for job in jobs if job["results"]} - {None}
    notes += [f"not compared: {reason}" for reason in sorted(reasons)]
    rows = [_sweep_row(job, common) for job in jobs]
    console.table(f"sweep of {len(jobs)} runs", columns, rows, notes)


def _sweep_row(job: dict[str, Any], common: set[str]) -> Sequence[str]:
    # model=v2 reads v2 and model.width_mult=0.5 reads width_mult=0.5: the column is narrow
    varied = [word.lstrip("+") for word in job["overrides"] if word not in common]
    label = " ".join(re.sub(r"^(?:\w+=(?:\w+/)*|(?:\w+\.)+)", "", word) for word in varied)
    # a search's numbers have more digits than the column
    label = re.sub(r"\d+\.\d{6,}", lambda number: f"{float(number[0]):.4g}", label)
    results = job["results"]
    if results is None:
        return (label or "defaults", "failed", *["-"] * 5)
    row = (results["reference"] or {}).get("row")
    printed = [row["top1"], row["madds_m"], row["params_m"]] if row else [None] * 3
    return (
        label or "defaults",
        figure(results["top1"]),
        figure(results["madds"] / MILLION),
        figure(results["params"] / MILLION, 3),
        *map(_printed, printed),
    )
