"""Prints the results of an evaluation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilenet_exp.core import console
from mobilenet_exp.core.files import from_here
from mobilenet_exp.core.text import examples, figure, plural, printable
from mobilenet_exp.evaluation.metrics import ALWAYS
from mobilenet_exp.tracking.terminal import MILLION, ROWS, printed


def print_loaded(origin: str, notes: Sequence[str]) -> None:
    """Say which weights are evaluated, how their images are prepared, and on what."""
    console.line(origin)
    for note in notes:
        console.line(f"  {note}")


def print_evaluation(
    results: dict[str, Any], folder: Path, status: str, more: Sequence[str] = ()
) -> None:
    """Print the scores beside their published row, and which images were converted or left out.

    `more` are the metrics of `run.metrics`.
    """
    row = (results["reference"] or {}).get("row") or {}
    delta = dict((results["reference"] or {}).get("delta") or {})
    if row and results["madds"] != results["reference"]["counted"]["madds"]:
        # a different net or side than the row's: no gap in counts either
        delta = {key: value for key, value in delta.items() if key.startswith("top")}
    rows = [
        (
            ROWS[key],
            figure(results[key] if key.startswith("top") else results[key[:-2]] / MILLION, digits),
            printed(row.get(key)),
            figure(delta.get(key), digits, sign=True),
        )
        for key, digits in (("top1", 2), ("top5", 2), ("madds_m", 2), ("params_m", 3))
    ]
    rows += [
        (name, figure(results[key], digits), "-", "-")
        for name, key, digits in (("loss", "loss", 4), ("ECE %", "ece", 2))
    ]
    rows += [(name, f"{results[name]:.4g}", "-", "-") for name in more if name not in ALWAYS]
    if results["real"]:
        rows.append(("ReaL top-1 %", figure(results["real"]["top1"]), "-", "-"))
    rows.append(("images", str(results["num_images"]), "-", "-"))
    notes = [f"not compared: {results['paper_reason']}"] if results["paper_reason"] else []
    if row:
        notes.append(f"{row['source']}: {row['citation']}")
        if row["madds_as_printed"] != row["madds"]:
            counted = figure(row["madds_as_printed"] / MILLION)
            notes.append(f"this source counts multiply-adds differently: {counted} M here")
    notes += _noted_images(results)
    title = f"{results['model']} {results['width_mult']:g} on {results['data']}"
    console.table(title, ("", "here", "published", "gap"), rows, notes)
    for label, answer, images in results["most_confused"][:3]:
        console.line(f"{plural(images, 'image')} of {label} classified as {answer}")
    console.line(status)
    files = "results.json, per_class.csv, predictions.csv, confusion.csv"
    console.line(f"{files} in {from_here(folder)}")


def _noted_images(results: dict[str, Any]) -> list[str]:
    """Count what was left out and converted, and name the first few."""
    lines = []
    for found, kind, state in (
        (results["left_out"], "image", "LEFT OUT"),
        (results["converted"], "image", "converted and scored"),
        (results["others"], "file", "passed over, no images"),
    ):
        if not found:
            continue
        names = examples(found)
        lines.append(f"{plural(len(found), kind)} {state}: {names}; all in odd_images.csv")
    if results["num_missing"]:
        missing = plural(results["num_missing"], "labelled image")
        lines.append(f"{missing} MISSING from the folder")
    if results["num_left_out"] or results["num_missing"]:
        lines.append("not every image was scored: exit code 3")
    return lines


def print_photos(
    answers: Sequence[tuple[str, str, list[tuple[str, float]]]], unread: dict[str, str]
) -> None:
    """Print the best five names of a photo, or a row with the best two for each of several."""
    if len(answers) == 1:
        photo, note, guesses = answers[0]
        title = f"{printable(photo)} ({note})" if note else printable(photo)
        console.table(title, ("", "%"), [(name, figure(share)) for name, share in guesses])
    elif answers:
        rows = []
        for photo, note, guesses in answers:
            best = [*guesses[:2], ("-", None)][:2]
            cells = (cell for name, share in best for cell in (name, figure(share)))
            rows.append((printable(photo) + (f" ({note})" if note else ""), *cells))
        columns = ("", "best", "%", "second", "%")
        console.table(plural(len(rows), "photo"), columns, rows)
    for photo, reason in unread.items():
        console.line(f"LEFT OUT: {printable(photo)} {reason}")
