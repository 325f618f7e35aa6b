"""`python -m mobilenet_exp page`: a folder of runs as one HTML file that needs no server.

The file contains all its data and the plotting library, and loads nothing from other hosts.
`assets/` has its HTML frame, style and script; this module fills in the data.
"""

import base64
import csv
import gzip
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.files import from_here, write_file
from mobilenet_exp.core.text import plural, printable
from mobilenet_exp.papers.rows import paper_rows
from mobilenet_exp.reports.options import Parser
from mobilenet_exp.reports.reading import RunFolder, flat, number, read_csv, read_runs, text
from mobilenet_exp.reports.runs import ROOT, row_of

COLUMNS = (
    "name", "kind", "state", "problem", "model", "width_mult", "data", "resolution", "top1",
    "paper_top1", "gap", "madds", "params", "epochs", "seconds", "changed", "sweep", "command",
)  # fmt: skip
# curves that are shown, by what their keys begin with
CURVES = ("train/loss", "train/top1", "train/lr", "train/grad_norm", "val/", "val_ema/", "speed/")
NOT_CURVES = ("val/num_images", "val_ema/num_images", "val/ece", "val_ema/ece")
# points of each curve, with as many runs as this; more runs have fewer
MAX_POINTS, MANY_RUNS = 80, 1000
# classes of a confusion matrix, and of the list of the worst ones where there are more
MAX_CLASSES = 50
# characters of the page that answers and pictures of runs may take, the newest first
ANSWERS, PICTURES = 1_500_000, 3_000_000
WIDTH = 960
# stands for a key that a configuration does not have
ABSENT = "-"


def main(args: list[str]) -> None:
    """Write the page of a folder of runs."""
    parser = Parser(
        prog="python -m mobilenet_exp page",
        description="Write a page of the runs in a folder: one HTML file, to be opened from disk.",
    )
    parser.add_argument("root", nargs="?", default=ROOT, help="folder of the runs (default: runs)")
    parser.add_argument("--out", help="the file to write (default: FOLDER.html, here)")
    arguments = parser.parse_args(args)
    root = Path(arguments.root)
    name = root.resolve().name
    if not (name or arguments.out):
        raise InputError("--out", "", "is needed: the folder has no name of its own")
    out = Path(arguments.out or f"{name}.html")
    if out.is_dir():
        raise InputError("--out", out, "is a folder")
    runs = read_runs(root)
    write_file(out, page(runs, root))
    size = out.stat().st_size / 1e6
    shown = from_here(out)
    console.line(f"{shown}: {plural(len(runs), 'run')}, {size:.1f} MB; open it in a browser")


def page(runs: Sequence[RunFolder], root: Path) -> str:
    """Return the page as HTML."""
    shown = [(run, run.name) for run in runs]
    for run in runs:
        shown += [(each, f"{run.name}/eval/{each.name}") for each in run.evals]
    configs = [_settings(run) for run, _ in shown]
    common = _common(configs)
    details = _details(shown, configs, common)
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    data = {
        "about": f"{plural(len(runs), 'run')} in {printable(str(root))}, read {now} UTC",
        "columns": COLUMNS,
        "rows": [_row(run, name) for run, name in shown],
        "papers": _papers(),
        "common": common,
    }
    blobs = [_blob("plotly", _plotly())]
    blobs += [_blob(f"run-{index}", detail) for index, detail in enumerate(details)]
    assets = files("mobilenet_exp.reports") / "assets"
    parts = {
        "css": (assets / "page.css").read_text(encoding="utf-8"),
        "js": (assets / "page.js").read_text(encoding="utf-8"),
        "blobs": "\n".join(blobs),
        # no text of a run can end the script that holds it
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
    }
    frame = (assets / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], frame)


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return _packed(get_plotlyjs())


def _packed(content: str) -> str:
    """Return a text compressed by gzip, in base64, which is safe inside HTML."""
    return base64.b64encode(gzip.compress(content.encode(), mtime=0)).decode()


def _blob(name: str, content: str) -> str:
    return f'<script type="text/plain" id="{name}">{content}</script>'


def _row(run: RunFolder, name: str) -> list[Any]:
    row = row_of(run) | {"changed": round(run.changed)}
    cells = [row[key] for key in COLUMNS]
    cells[0] = name
    # what another version wrote may be anything
    return [printable(cell) if isinstance(cell, str) else number(cell) for cell in cells]


def _papers() -> dict[str, list[tuple[float, float, str]]]:
    """Return for each generation what its paper publishes: madds in millions, top-1, the net."""
    found: dict[str, list[tuple[float, float, str]]] = {}
    for row in paper_rows():
        generation = row.model[:2].upper()
        if row.source not in ("paper", "paper_appendix") or row.top1 is None or row.is_quantised:
            continue
        name = f"{row.model} {row.width_mult:g} at {row.resolution} px"
        found.setdefault(generation, []).append((row.madds / 1e6, row.top1, name))
    return {key: _front(points) for key, points in sorted(found.items())}


def _front(points: list[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Return the points that no other one beats in both, by rising madds."""
    front: list[tuple[float, float, str]] = []
    for point in sorted(points, key=lambda each: (each[0], -each[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def _settings(run: RunFolder) -> dict[str, str]:
    """Return a run's configuration as texts, by whole keys."""
    return {
        printable(str(key)): "null" if value is None else printable(str(value))
        for key, value in flat(run.config).items()
    }


def _common(configs: Sequence[dict[str, str]]) -> dict[str, str]:
    """Return the most frequent value of each key: runs then only hold what differs."""
    counts: dict[str, Counter] = {}
    known = [config for config in configs if config]
    for config in known:
        for key, value in config.items():
            counts.setdefault(key, Counter())[value] += 1
    for values in counts.values():
        values[ABSENT] += len(known) - values.total()
    return {key: values.most_common(1)[0][0] for key, values in counts.items()}


def _details(
    shown: Sequence[tuple[RunFolder, str]],
    configs: Sequence[dict[str, str]],
    common: dict[str, str],
) -> list[str]:
    """Return what is shown of each run once it is chosen, packed."""
    found = []
    answers_left, pictures_left = ANSWERS, PICTURES
    points = max(10, round(MAX_POINTS * min(1.0, MANY_RUNS / max(len(shown), 1))))
    for (run, _), config in zip(shown, configs, strict=True):
        values = {key: config.get(key, ABSENT) for key in common}
        differs = {key: value for key, value in values.items() if value != common[key]}
        detail: dict[str, Any] = {
            # None where it is not known
            "config": differs if config else None,
            "curves": _curves(run.rows, "epoch", points),
            "steps": _curves(run.steps, "step", points),
            "reason": printable(text(run.results.get("paper_reason"))),
            "made_by": _made_by(run),
        }
        folder = _folder_of_answers(run)
        if folder:
            has_room = answers_left > 0, pictures_left > 0
            answers = _answers(folder, run) if has_room[0] else None
            picture = _picture(folder / "errors.png") if has_room[1] else None
            answers_left -= len(_packed(json.dumps(answers)))
            pictures_left -= len(picture or "")
            detail |= {"answers": answers, "errors": picture}
            if not has_room[0] or (not has_room[1] and os.path.exists(folder / "errors.png")):
                detail["left_out"] = (
                    "The page holds answers and worst images of the newest runs only; those of "
                    f"this one are in {printable(str(folder))}."
                )
        found.append(_packed(json.dumps(detail, allow_nan=False)))
    return found


def _curves(rows: list[dict[str, Any]], axis: str, points: int) -> dict[str, list[float | None]]:
    """Return a run's curves against `axis`, of at most `points` and always the last one."""
    step = -(-len(rows) // points) or 1
    kept = [row for index, row in enumerate(reversed(rows)) if index % step == 0][::-1]
    keys = dict.fromkeys(key for row in kept for key in row if key.startswith(CURVES))
    found = {axis: [number(row.get(axis)) for row in kept]}
    for key in keys:
        if key not in NOT_CURVES:
            values = [number(row.get(key)) for row in kept]
            found[printable(key)] = [None if each is None else _rounded(each) for each in values]
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _made_by(run: RunFolder) -> str:
    made_by = run.provenance
    versions = made_by.get("versions")
    torch = text(versions.get("torch")) if isinstance(versions, dict) else ""
    commit = text(made_by.get("git_commit"))
    parts = [
        f"started {text(made_by.get('started'))}",
        f"commit {commit[:12]}{'-dirty' if commit.endswith('-dirty') else ''}" if commit else "",
        f"torch {torch}" if torch else "",
        text(made_by.get("processor")),
    ]
    return printable(", ".join(filter(None, parts))) if made_by else ""


def _folder_of_answers(run: RunFolder) -> Path | None:
    """Return the folder with a run's answers: its best epoch's, or its last evaluation's."""
    folders = [run.path / "best", run.path, *(each.path for each in run.evals[::-1])]
    return next((each for each in folders if os.path.exists(each / "per_class.csv")), None)


def _answers(folder: Path, run: RunFolder) -> dict[str, Any] | None:
    """Return accuracy by class and what was confused; of many classes, the worst ones."""
    rows = read_csv(folder / "per_class.csv")
    names = [printable(row.get("class") or "") for row in rows]
    # a class without images has none
    top1 = [_percent(row.get("top1")) for row in rows]
    scored = sorted((value, index) for index, value in enumerate(top1) if value is not None)
    if not scored:
        return None
    is_small = len(rows) <= MAX_CLASSES
    pairs = _confusions(folder / "confusion.csv")
    if not _fits(pairs, len(names)):
        pairs = []
    worst = sorted(((n, i, j) for i, j, n in pairs if i != j), reverse=True)[:5]
    worst_first = [index for _, index in scored][:MAX_CLASSES]
    kept = list(range(len(rows))) if is_small else worst_first
    what = "of the best epoch" if folder.name == "best" else f"of {folder.name}"
    if not is_small:
        what += f"; the worst {MAX_CLASSES} of {len(rows)} classes"
    return {
        "of": f"Answers to the validation images {printable(what)}.",
        "classes": [names[index] for index in kept],
        "top1": [top1[index] for index in kept],
        "matrix": pairs if is_small and pairs else None,
        "most_confused": [(names[i], names[j], n) for n, i, j in worst],
    }


def _percent(word: str | None) -> float | None:
    try:
        return number(round(float(word or ""), 2))
    except ValueError:
        return None


def _fits(pairs: list[tuple[int, int, int]], num_classes: int) -> bool:
    return all(max(label, answer) < num_classes for label, answer, _ in pairs)


def _confusions(path: Path) -> list[tuple[int, int, int]]:
    """Return label, answer and images of each pair that happened, from a square table."""
    found: list[tuple[int, int, int]] = []
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = list(csv.reader(file))[1:]
    except (OSError, csv.Error):
        return []
    for label, row in enumerate(rows):
        if len(row) != len(rows) + 1:
            # very many classes are listed, not laid out in a square; or the file was cut off
            return []
        found += [(label, at, int(n)) for at, n in enumerate(row[1:]) if n.isdigit() and n != "0"]
    return found


def _picture(path: Path) -> str | None:
    """Return a picture as a data URL, or None if it cannot be read."""
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except (OSError, ValueError):
        return None
    if small.width > WIDTH:
        small.thumbnail((WIDTH, 10 * WIDTH))
    content = BytesIO()
    small.save(content, "WEBP", quality=60)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
