"""Draws the pictures of a benchmark from its rows."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from mobilenet_exp.deploy.by_layer import BETWEEN, KINDS, LayerTime

# of runtimes, and of kinds of layers
COLOURS = ("#4c566a", "#2f6fb0", "#2e7d4f", "#b8860b", "#bf3f3f", "#7d4f9e", "#8a8a8a")
# positions of a name beside its dot: points to the right and up, horizontal alignment
BESIDE = ((5, 3, "left"), (5, -9, "left"), (-5, 3, "right"), (-5, -9, "right"),
          (5, -18, "left"), (-5, -18, "right"), (5, 12, "left"), (-5, 12, "right"))  # fmt: skip
# pixels around a name in which a dot would be taken for its own
NEAR = 4
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "latency", "font.size": 9}


def draw_madds(rows: Sequence[dict[str, Any]], path: Path, about: str = "") -> bool:
    """Draw the latency of each network over its multiply-adds, a panel for each batch size.

    Nothing is drawn, and False returned, where nothing was timed.
    """
    rows = [row for row in rows if row["latency_ms"] is not None]
    if not rows:
        return False
    sizes = list(dict.fromkeys(row["batch_size"] for row in rows))
    runtimes = dict.fromkeys(row["runtime"] for row in rows)
    colours = dict(zip(runtimes, itertools.cycle(COLOURS), strict=False))
    with _panels(path, len(sizes), about) as panels:
        for axes, size in zip(panels, sizes, strict=True):
            here = [row for row in rows if row["batch_size"] == size]
            for name, colour in colours.items():
                points = [row for row in here if row["runtime"] == name]
                axes.scatter(
                    [row["madds"] / 1e6 for row in points],
                    [row["latency_ms"] for row in points],
                    color=colour,
                    s=18,
                    label=name,
                )
            fastest = _fastest(here)
            axes.set(xscale="log", yscale="log", title=f"batch {size}")
            axes.set(xlabel="multiply-adds of an image, millions", ylabel="ms of a batch")
            dots, names = (
                [(row["madds"] / 1e6, row["latency_ms"], row["model"]) for row in rows_]
                for rows_ in (here, fastest)
            )
            _name(axes, names, dots)
        panels[0].legend(frameon=False)
    return True


def draw_top1(rows: Sequence[dict[str, Any]], path: Path, about: str = "") -> bool:
    """Draw published top-1 over the latency in the fastest runtime, and its Pareto front.

    Nothing is drawn, and False returned, where fewer than two networks have a published top-1.
    """
    known = [row for row in rows if row["top1"] is not None and row["latency_ms"] is not None]
    sizes = list(dict.fromkeys(row["batch_size"] for row in known))
    if len({row["model"] for row in known}) < 2:
        return False
    with _panels(path, len(sizes), about) as panels:
        for axes, size in zip(panels, sizes, strict=True):
            here = _fastest([row for row in known if row["batch_size"] == size])
            points = [(row["latency_ms"], row["top1"], row["model"]) for row in here]
            front = pareto_front(points)
            axes.step(*zip(*[each[:2] for each in front], strict=True), where="post", color="0.7")
            axes.scatter(*zip(*[each[:2] for each in points], strict=True), s=18, color=COLOURS[1])
            axes.set(xscale="log", title=f"batch {size}")
            axes.set(xlabel="ms of a batch, fastest runtime", ylabel="published ImageNet top-1, %")
            _name(axes, points, points)
    return True


def pareto_front(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Return the points (cost, gain, name) that none beats in both, by rising cost."""
    front: list[tuple[float, float, str]] = []
    for point in sorted(points, key=lambda each: (each[0], -each[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def draw_layers(layers: Sequence[LayerTime], title: str, path: Path, about: str = "") -> None:
    """Draw the percentage of time of each block, by kind of layer, above that of multiply-adds."""
    blocks = [each for each in dict.fromkeys(one.block for one in layers) if each != BETWEEN]
    with _panels(path, 2, about, stacked=True) as panels:
        for axes, of, label in ((panels[0], "ms", "time, %"), (panels[1], "madds", "madds, %")):
            total = sum(getattr(each, of) for each in layers) or 1
            bottom = [0.0] * len(blocks)
            for kind, colour in zip(KINDS, COLOURS, strict=True):
                spent = {one.block: getattr(one, of) for one in layers if one.kind == kind}
                heights = [100 * spent.get(block, 0) / total for block in blocks]
                if any(heights):
                    axes.bar(blocks, heights, bottom=bottom, color=colour, label=kind)
                bottom = [low + high for low, high in zip(bottom, heights, strict=True)]
            axes.set(ylabel=label)
        panels[0].set(title=f"where the time of {title} goes")
        panels[0].tick_params(labelbottom=False)
        panels[1].tick_params(axis="x", rotation=90)
        panels[0].legend(frameon=False, ncols=2)


class _panels:
    """A figure of panels side by side or stacked, written to `path` at the end.

    `about` becomes an SVG's description.
    """

    def __init__(self, path: Path, count: int, about: str, *, stacked: bool = False) -> None:
        matplotlib.use("Agg")
        from matplotlib import pyplot

        self.path, self.about, self.plt = path, about, pyplot
        self._style = pyplot.rc_context(STYLE)
        self._shape = (count, 1) if stacked else (1, count)
        self._size = (9, 5.5) if stacked else (5.2 * count, 4.4)

    def __enter__(self) -> list[Any]:
        self._style.__enter__()
        self.figure, panels = self.plt.subplots(
            *self._shape, figsize=self._size, layout="constrained", squeeze=False
        )
        for axes in panels.flat:
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="0.92")
            axes.set_axisbelow(True)
        return list(panels.flat)

    def __exit__(self, kind: type | None, error: object, trace: object) -> None:
        if kind is None:
            for axis in (each for axes in self.figure.axes for each in (axes.xaxis, axes.yaxis)):
                if axis.get_scale() == "log":
                    # 100, not 10 to the power of 2
                    axis.set_major_formatter("{x:g}")
            is_svg = self.path.suffix == ".svg"
            about = {"Date": None, "Description": self.about} if is_svg else None
            self.figure.savefig(self.path, metadata=about, dpi=120)
        self.plt.close(self.figure)
        self._style.__exit__(None, None, None)


def _fastest(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each network's row in the runtime that is fastest for it."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        known = best.get(row["model"])
        if known is None or row["latency_ms"] < known["latency_ms"]:
            best[row["model"]] = row
    return list(best.values())


def _name(axes: Any, names: Sequence[tuple[float, float, str]], dots: Sequence[Any]) -> None:
    """Write the name of (x, y, name) beside its dot, where it covers no other name and few dots."""
    # where things stand is known once they are drawn
    axes.figure.canvas.draw()
    spots = axes.transData.transform([dot[:2] for dot in dots])
    taken: list[Any] = []
    for x, y, title in sorted(names):
        found = []
        for number, (right, up, side) in enumerate(BESIDE):
            text = axes.annotate(
                title.removeprefix("timm:"),
                (x, y),
                (right, up),
                textcoords="offset points",
                ha=side,
                fontsize=7,
            )
            box = text.get_window_extent()
            covered = sum(box.padded(NEAR).contains(*spot) for spot in spots)
            covered += len(spots) * sum(box.overlaps(other) for other in taken)
            found.append((covered, number, text, box))
        _, best, _, box = min(found)
        taken.append(box)
        for _, number, text, _ in found:
            if number != best:
                text.remove()
