"""Writes docs/RESULTS.md and its picture from the runs of `make results`.

Every figure on the page comes from docs/results.json, which is read off those runs.
"""

import hashlib
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from docs.build.pages import DOCS, filled, markdown_table, run
from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.text import figure, plural
from mobilenet_exp.deploy.pictures import COLOURS, STYLE
from mobilenet_exp.papers.rows import paper_row
from mobilenet_exp.reports.reading import RunFolder, read_runs

RECORD, PAGE, PICTURE = (DOCS / name for name in ("results.json", "RESULTS.md", "results.svg"))
# what is trained, and how often
SETS, SEEDS = ("digits", "photos"), 3
SWEPT = "v3_small"

TEXT = """# What these networks reach here

Every generation, and a width sweep of {swept}, trained from scratch on the two sets of real
images that come without a download, {seeds} seeds each: top-1 in percent of the held-out
images, as the mean of the best epochs, with the lowest and the highest in brackets. Written by

```
make results
```

from [results.json](results.json): {runs}, {minutes} minutes of training in all, two at a
time with one thread each, on {processor}, commit `{commit}`, {versions}.
`digits` are scikit-learn's handwritten digits, enlarged to {digits[resolution]} px:
{digits[sizes]}. `photos` are crops of photographs that installed packages ship, at
{photos[resolution]} px: {photos[sizes]}.

![top-1 over multiply-adds on both sets](results.svg)

## The generations

{generations}

Every network reaches a mean of 99 % or more on both sets, and most ranges overlap; where they do,
three seeds tell no difference. Only v3_small on `photos` stays below another one's range, v2's.

## Width

{swept} at four widths:

{widths}

From width {narrow:g} to {wide:g}, {times:.1f} times the multiply-adds, the mean moves by
{gains[digits]:+.2f} points on `digits` and by {gains[photos]:+.2f} on `photos`.

## What this page is, and is not

These sets are tiny, and a MobileNet learns them in minutes: the page shows that each network
trains here as it should, how much a seed moves a figure, and what a width costs on a small
problem. A class of `photos` is a part of one photograph, and the crops held out overlap those that
were learned from: 100 % says nothing about other photographs. Nor does the page say which
generation is better at ImageNet; that is in the [model zoo](MODEL_ZOO.md). A single run is
repeated by

```
python -m mobilenet_exp photos data/photos
python train.py model=v2 data=photos train.seed=0 run.threads=1
python train.py model.width_mult=0.5 data=digits train.seed=0 run.threads=1
```
"""

# of a run's results
KEYS = (
    "model", "width_mult", "data", "resolution", "num_classes", "top1", "best_epoch", "epochs",
    "seconds", "madds", "params",
)  # fmt: skip


def read(root: Path) -> dict[str, Any]:
    """Return the record of the runs in a folder.

    Raises ValueError if one is missing or unfinished, or if they were not all made by the same
    committed code, libraries and processor.
    """
    runs = [run for run in read_runs(root) if run.kind == "train"]
    odd = [f"{run.name} is {run.state}" for run in runs if run.state != "finished"]
    if odd:
        raise ValueError(odd[0])
    if not runs:
        raise ValueError("holds no runs")
    made_by = [_made_by(run) for run in runs]
    if any(each != made_by[0] for each in made_by):
        raise ValueError("its runs were made by several commits, libraries or processors")
    if None in made_by[0].values():
        raise ValueError(
            f"{runs[0].name} does not say which commit, libraries and processor made it"
        )
    if str(made_by[0]["git_commit"]).endswith("-dirty"):
        raise ValueError("its runs were made by code that is not committed")
    rows = [_row(run) for run in runs]
    order = sorted(
        rows, key=lambda row: (row["data"], row["model"], row["width_mult"], row["seed"])
    )
    return {"made_by": made_by[0], "rows": order}


def _row(run: RunFolder) -> dict[str, Any]:
    """Return what the page says of a run."""
    try:
        images = {key: run.results["images"][key] for key in ("num_train", "num_val")}
        found = {key: run.results[key] for key in KEYS}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{run.name} has no {error} in its results; of another version") from error
    return found | images | {"seed": run.setting("train.seed")}


def _made_by(run: RunFolder) -> dict[str, Any]:
    return {key: run.provenance.get(key) for key in ("git_commit", "versions", "processor")}


class Cell:
    """The runs of one network on one set, one for each seed."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.top1 = [row["top1"] for row in rows]
        self.madds, self.params = rows[0]["madds"], rows[0]["params"]
        self.mean = statistics.mean(self.top1)

    def describe(self) -> str:
        """Return the mean and the range."""
        return f"{self.mean:.2f} ({min(self.top1):.2f} - {max(self.top1):.2f})"


def cells_of(found: dict[str, Any]) -> dict[tuple[str, float, str], Cell]:
    """Return the cells by network, width and set. Raises ValueError if a seed is missing."""
    rows = defaultdict(list)
    for row in found["rows"]:
        rows[row["model"], row["width_mult"], row["data"]].append(row)
    for (model, width, data), each in rows.items():
        if len({row["seed"] for row in each}) != SEEDS or len(each) != SEEDS:
            raise ValueError(f"{model} {width:g} on {data} has {len(each)} runs, not {SEEDS}")
    nets = {key[:2] for key in rows}
    for model, width in nets:
        missing = [data for data in SETS if (model, width, data) not in rows]
        if missing:
            raise ValueError(f"{model} {width:g} was not trained on {missing[0]}")
    if sum(model == SWEPT for model, _ in nets) < 2:
        raise ValueError(f"has no sweep of {SWEPT}'s width")
    return {key: Cell(each) for key, each in rows.items()}


def page(found: dict[str, Any]) -> str:
    """Return the page as Markdown.

    Raises ValueError where figures are missing, or do not bear out what the text says of them.
    """
    cells = cells_of(found)
    check_reading(cells)
    made_by, rows = found["made_by"], found["rows"]
    narrow, *_, wide = _swept(cells)
    small, large = ({data: cells[SWEPT, width, data] for data in SETS} for width in (narrow, wide))
    versions = ", ".join(f"{name} {number}" for name, number in made_by["versions"].items())
    text = TEXT.format(
        swept=SWEPT,
        seeds=SEEDS,
        runs=plural(len(rows), "run"),
        minutes=round(sum(row["seconds"] for row in rows) / 60),
        processor=made_by["processor"],
        versions=versions,
        commit=made_by["git_commit"][:12],
        digits=_set(rows, "digits"),
        photos=_set(rows, "photos"),
        generations=_generations(cells),
        widths=_widths(cells),
        narrow=narrow,
        wide=wide,
        times=large[SETS[0]].madds / small[SETS[0]].madds,
        gains={data: large[data].mean - small[data].mean for data in SETS},
    )
    return "\n\n".join(_wrapped(block) for block in text.rstrip("\n").split("\n\n")) + "\n"


def _wrapped(block: str) -> str:
    """Return a paragraph in lines of one length; tables, headings and commands as they are."""
    return block if block.startswith(("#", "|", "!", "```")) else filled(" ".join(block.split()))


def _set(rows: list[dict[str, Any]], data: str) -> dict[str, Any]:
    """Return what the page says of a set."""
    row = next(row for row in rows if row["data"] == data)
    sizes = (
        f"{row['num_classes']} classes, {row['num_train']:,} images to learn from and "
        f"{row['num_val']} held out, of which each is {100 / row['num_val']:.2f} points"
    )
    return {"resolution": row["resolution"], "sizes": sizes}


def _full(cells: dict) -> list[str]:
    """Return the networks at width 1, by their madds on the first set."""
    names = {model for model, width, _ in cells if width == 1}
    return sorted(names, key=lambda name: cells[name, 1.0, SETS[0]].madds)


def _generations(cells: dict) -> str:
    return _table(cells, "network", {name: (name, 1.0) for name in _full(cells)})


def _table(cells: dict, title: str, nets: dict[str, tuple[str, float]]) -> str:
    """Return a row for each network and width of `nets`, whose keys are its first column."""
    lines = []
    for word, (name, width) in nets.items():
        pair = [cells[name, width, data] for data in SETS]
        row = paper_row(name, width_mult=width)
        lines.append(
            [
                word,
                f"{pair[0].params / 1e6:.2f}",
                *(word for cell in pair for word in (f"{cell.madds / 1e6:.1f}", cell.describe())),
                figure(row.top1 if row else None, 1),
            ]
        )
    columns = [title, "params M"]
    columns += [word for data in SETS for word in (f"madds M, {data}", f"top-1 %, {data}")]
    return markdown_table([*columns, "its paper, ImageNet"], lines)


def check_reading(cells: dict) -> None:
    """Raise ValueError for the first statement of the page that the runs contradict."""
    below = "v3_small", "photos"
    overlap, means = [], []
    for data in SETS:
        here = {name: cells[name, 1.0, data] for name in _full(cells)}
        best = max(here.values(), key=lambda cell: cell.mean)
        means += [cell.mean for cell in here.values()]
        overlap += [
            max(cell.top1) >= min(best.top1) for name, cell in here.items() if (name, data) != below
        ]
    small, v2 = cells["v3_small", 1.0, "photos"], cells["v2", 1.0, "photos"]
    statements = {
        "every network reaches 99 %": min(means) >= 99,
        "v3_small stays below v2 on photos": max(small.top1) < min(v2.top1),
        "all other ranges overlap with the best one": all(overlap),
    }
    for statement, holds in statements.items():
        if not holds:
            raise ValueError(f"the page says that {statement}; these runs do not show it")


def _swept(cells: dict) -> list[float]:
    return sorted(width for model, width, data in cells if model == SWEPT and data == SETS[0])


def _widths(cells: dict) -> str:
    return _table(cells, "width", {f"{width:g}": (SWEPT, width) for width in _swept(cells)})


def digest(found: dict[str, Any]) -> str:
    """Return what tells the figures of one series of runs from those of another."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw top-1 over multiply-adds, a panel for each set; bars reach from lowest to highest."""
    import matplotlib
    from matplotlib.figure import Figure

    cells = cells_of(found)
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "results"}):
        drawn = Figure(figsize=(10.5, 4.0), layout="constrained")
        panels = drawn.subplots(1, len(SETS), sharey=True)
        for axes, data in zip(panels, SETS, strict=True):
            _panel(axes, data, cells)
        panels[0].set_ylabel("top-1 %")
        about = {"Date": None, "Description": f"figures sha256 {digest(found)}"}
        drawn.savefig(path, format="svg", metadata=about)


def _panel(axes: Any, data: str, cells: dict) -> None:
    from matplotlib.ticker import LogLocator

    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    swept = [cells[SWEPT, width, data] for width in _swept(cells)]
    _bars(axes, swept, COLOURS[1], "-")
    for width, cell in zip(_swept(cells), swept, strict=True):
        name = f"{SWEPT} {width:g}" if cell is swept[0] else f"{width:g}"
        _label(axes, cell, name, COLOURS[1])
    for number, name in enumerate(each for each in _full(cells) if each != SWEPT):
        cell, colour = cells[name, 1.0, data], COLOURS[(0, 2, 3, 4, 5)[number % 5]]
        _bars(axes, [cell], colour, "")
        # neighbours leave no room for names side by side
        _label(axes, cell, name, colour, rotation=90)
    axes.margins(x=0.1, y=0.12)
    axes.set(xscale="log", title=f"{data}, {SEEDS} seeds, lowest to highest")
    axes.set_xlabel("multiply-adds of an image, millions")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")


def _bars(axes: Any, cells: Sequence[Cell], colour: str, line: str) -> None:
    means = [cell.mean for cell in cells]
    reach = [
        [cell.mean - min(cell.top1) for cell in cells],
        [max(cell.top1) - cell.mean for cell in cells],
    ]
    madds = [cell.madds / 1e6 for cell in cells]
    axes.errorbar(
        madds, means, reach, color=colour, linestyle=line, marker="o", markersize=4, capsize=3
    )


def _label(axes: Any, cell: Cell, name: str, colour: str, rotation: int = 0) -> None:
    """Write a name below a cell's bar."""
    place = {"xytext": (0, -5), "textcoords": "offset points", "ha": "center", "va": "top"}
    below = cell.madds / 1e6, min(cell.top1)
    axes.annotate(name, below, color=colour, fontsize=8, rotation=rotation, **place)


def main(words: list[str]) -> None:
    """Write the page and its picture, from a folder of runs or from the last record."""
    if len(words) > 1:
        raise InputError("results", " ".join(words), "takes one argument, a folder of runs")
    source = Path(words[0]) if words else RECORD
    try:
        found = read(source) if words else json.loads(RECORD.read_text())
        text = page(found)
    except (OSError, ValueError) as error:
        raise InputError("results", source, str(error)) from error
    except (KeyError, TypeError) as error:
        raise InputError("results", source, "is no record of such runs") from error
    RECORD.write_text(json.dumps(found, indent=1) + "\n")
    draw(found, PICTURE)
    PAGE.write_text(text)
    console.line(f"wrote {PAGE} and its picture")


if __name__ == "__main__":
    run(main)
