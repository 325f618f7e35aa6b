"""A run's curves as a picture, drawn anew while it goes on."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# the fraction of a run's time that may be spent on its pictures before the last one
SHARE = 0.005
# points of a line that are marked one by one
FEW = 30
STYLE = {"font.size": 9, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False,
         "axes.spines.right": False}  # fmt: skip
# what is drawn of a row: its key, its name, its colour
LOSSES = (
    ("train/loss", "training", "#8a8a8a"),
    ("val/loss", "validation", "#2f6fb0"),
    ("val_ema/loss", "validation, averaged weights", "#2e7d4f"),
)
ACCURACIES = (
    ("train/top1", "training", "#8a8a8a"),
    ("val/top1", "validation", "#2f6fb0"),
    ("val_ema/top1", "validation, averaged weights", "#2e7d4f"),
)


class Throttle:
    """Runs a task so seldom that it takes at most SHARE of the wall time."""

    def __init__(self, task: Callable[[], None]) -> None:
        self._task = task
        self._ended = time.monotonic()
        # what importing matplotlib and drawing take, before it is known
        self._cost = 1.0

    def do(self) -> None:
        """Do the task if enough time has passed since the last time."""
        if time.monotonic() - self._ended >= self._cost / SHARE:
            self.do_now()

    def do_now(self) -> None:
        """Do the task."""
        started = time.monotonic()
        self._task()
        self._ended = time.monotonic()
        self._cost = self._ended - started


def draw_curves(
    rows: Sequence[dict[str, Any]], path: Path, title: str, paper: tuple[str, float] | None
) -> None:
    """Draw loss and top-1 in percent against the epoch.

    `rows` are those of metrics.jsonl; `paper` is the name and top-1 of the published row,
    if the run repeats its experiment.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6), dpi=110)
        figure.subplots_adjust(0.06, 0.13, 0.98, 0.84, 0.14)
        left, right = figure.subplots(1, 2)
        for axes, lines in ((left, LOSSES), (right, ACCURACIES)):
            for key, label, colour in lines:
                points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
                if points:
                    mark = "." if len(points) < FEW else None
                    axes.plot(*zip(*points, strict=True), marker=mark, color=colour, label=label)
            axes.xaxis.get_major_locator().set_params(integer=True)
        left.set(xlabel="epoch", title="loss")
        right.set(xlabel="epoch", title="top-1 %")
        if paper:
            right.axhline(paper[1], color="#bf3f3f", linestyle="--", label=paper[0])
        for axes in (left, right):
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False)
        figure.suptitle(title, parse_math=False)
        figure.savefig(path, format="png")
