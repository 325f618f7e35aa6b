"""The page of every net and every published row: `python -m docs.build.zoo` writes it.

Counts are made anew from the networks built here; prints come from `paper_rows.csv`.
"""

import hashlib
from functools import cache
from pathlib import Path

import matplotlib
import torch

from docs.build.pages import DOCS, run
from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.text import plural
from mobilenet_exp.models import MobileNet, build_model, list_models
from mobilenet_exp.models.profiling import Profile, profile_model
from mobilenet_exp.papers.rows import AUTHORS, NOT_BUILT, PaperRow, paper_rows

PAGE, PICTURE = DOCS / "MODEL_ZOO.md", DOCS / "top1_over_madds.svg"

INTRO = """# Model zoo

Every network of this repository and every published row of it that is known here, built
and counted. `make zoo` writes this page from the registry and
`mobilenet_exp/papers/paper_rows.csv`; a test fails when it is stale.

![published top-1 over multiply-adds of the four generations](top1_over_madds.svg)

Accuracies are printed by their source, on ImageNet's validation set, in percent; none was
measured here. *Ours* is counted from the operators of the net that the row's command
builds: `python train.py data=imagenet data.root=IMAGENET` followed by the words in the
last column; where these name weights, `python eval.py` with the same. Madds are
multiply-adds of one image: convolutions and matrix products, squeeze-excite and attention
included; params include BatchNorm's weight and bias.

Sources: `paper`, the network's own, last version; `paper_early` before V3's v5;
`paper_appendix`; `slim`, the authors' released checkpoints (`slim_int8` quantised);
`v2_paper` to `v4_paper`, a later paper quoting or retraining it; `kuan-wang` and
`marvis:*`, the V3 and V1 repositories that this one started from; `torchvision:*`,
`timm:*`, `d-li14`, `tonylins` and others, published checkpoints. A mark * says that no
reading of the tables reproduces the printed figure; see the end of the page.

## Two ways of counting

kuan-wang's table prints 224, 148, 63 and 46 M madds where we count 219.80, 145.33, 60.12
and 43.56 M for the same nets. Its tool (a fork of `thop`) does not count multiply-adds
alone: an output of a linear layer costs 2 n - 1 operations for n inputs, n products and
n - 1 sums, so squeeze-excite and classifier count double; and an output of a convolution
with bias costs one more for each of its input channels, which doubles the 1x1 head.
`profile_model(net, 224, "kuanwang")` counts so, and gives 223.81, 148.37, 62.59 and 45.65 M.
All other figures here are by the papers' convention, `profile_model(net, 224)`.
"""

NO_ROWS = "no published rows"


@cache
def _build(model: str, width_mult: float, options: tuple) -> MobileNet:
    with torch.device("meta"):
        return build_model(model, width_mult=width_mult, **dict(options))


@cache
def _count(
    model: str, width_mult: float, resolution: int, options: tuple, convention: str
) -> Profile:
    return profile_model(_build(model, width_mult, options), resolution, convention)


def count(row: PaperRow, convention: str = "paper") -> Profile:
    """Count the net of a row as built here."""
    options = tuple(row.options.items())
    return _count(row.model, row.width_mult, row.resolution, options, convention)


def words(row: PaperRow) -> str:
    """Return the words of a command that compose the net and the side of a row."""
    parts = [f"model={row.model}"]
    if row.width_mult != 1:
        parts.append(f"model.width_mult={row.width_mult:g}")
    for key, value in row.options.items():
        is_number = isinstance(value, str) and value.isdecimal()
        parts.append(f"+model.args.{key}={repr(value) if is_number else value}")
    parts.append(f"data.resolution={row.resolution}")
    if row.source.startswith(("torchvision:", "timm:")):
        if row.crop_pct:
            parts.append(f"data.crop_pct={row.crop_pct:g}")
        parts.append(f"weights={row.source}")
    return " ".join(parts)


def page() -> str:
    """Return the page as Markdown."""
    parts = [INTRO, "## Nets and their rows\n"]
    for model in list_models():
        rows = [row for row in paper_rows() if row.model == model]
        link = f"[`model={model}`](../conf/model/{model}.yaml)"
        parts.append(f"### {model}\n\n{link}, {plural(len(rows), 'row') if rows else NO_ROWS}\n")
        parts += [_table(rows)] if rows else []
    parts.append("## Printed figures that cannot be reproduced\n")
    parts += [
        f"- {_net(row)}, {row.source}: {row.unreached}" for row in paper_rows() if row.unreached
    ]
    parts.append("\n## Rows of nets that are not built here\n")
    parts += [f"- `{name}`: {reason}" for name, reason in NOT_BUILT.items()]
    others = [row for row in paper_rows() if row.model in NOT_BUILT]
    parts.append("\n" + _table(others, is_built=False))
    parts.append("## Where each row is from\n")
    parts += _citations()
    return "\n".join(parts) + "\n"


def _net(row: PaperRow) -> str:
    return f"{row.model} {row.width_mult:g} at {row.resolution} px"


def _table(rows: list[PaperRow], *, is_built: bool = True) -> str:
    columns = ["width", "px", "source", "top-1", "top-5"]
    columns += ["madds M printed", "ours", "params M printed", "ours"]
    lines = [_line([*columns, "command" if is_built else "net"])]
    lines.append(_line(["--:"] * 2 + [":--"] + ["--:"] * 6 + [":--"]))
    for row in rows:
        counted = count(row) if is_built else None
        mark = {kind: "" if row.reaches(kind) else "*" for kind in ("madds", "params")}
        lines.append(
            _line(
                [
                    f"{row.width_mult:g}",
                    str(row.resolution),
                    row.source,
                    _accuracy(row.top1),
                    _accuracy(row.top5),
                    _printed(row.madds_m) + mark["madds"],
                    _counted_madds(row) if counted else "-",
                    _printed(row.params_m) + mark["params"],
                    f"{counted.params / 1e6:.6f}" if counted else "-",
                    f"`{words(row)}`" if is_built else row.model,
                ]
            )
        )
    return "\n".join(lines) + "\n"


def _counted_madds(row: PaperRow) -> str:
    own = f"{count(row).madds / 1e6:.3f}"
    if row.convention == "paper":
        return own
    return f"{own}; as printed {count(row, row.convention).madds / 1e6:.3f}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _printed(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _accuracy(value: float | None) -> str:
    return f"{value:.1f}" if value is not None and value % 1 == 0 else _printed(value)


def _citations() -> list[str]:
    found = sorted({(row.citation, row.source.partition(":")[0]) for row in paper_rows()})
    return [f"- {source}: {citation}" for citation, source in found]


# generation: prefixes of its models, colour
GENERATIONS = {
    "V1": (("v1",), "#4c72b0"),
    "V2": (("v2",), "#dd8452"),
    "V3": (("v3",), "#55a868"),
    "V4": (("v4",), "#c44e52"),
}


def points() -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return (madds in millions, top-1) for each generation: `authors` and `others`."""
    found = {}
    for name, (prefixes, _) in GENERATIONS.items():
        rows = [
            row
            for row in paper_rows()
            if row.model.startswith(prefixes)
            and row.model not in NOT_BUILT
            and row.top1 is not None
            # 0.1 % is RMSprop's collapse, not a net's accuracy
            and row.top1 > 1
            and not row.is_quantised
        ]
        libraries = ("torchvision:", "timm:")
        found[name] = {
            "authors": _points([row for row in rows if row.source in AUTHORS]),
            "others": _points([row for row in rows if row.source.startswith(libraries)]),
        }
    return found


def _points(rows: list[PaperRow]) -> list[tuple[float, float]]:
    return sorted({(row.madds / 1e6, row.top1) for row in rows if row.top1 is not None})


def points_digest() -> str:
    return hashlib.sha256(repr(points()).encode()).hexdigest()


def draw(path: Path) -> None:
    """Draw the picture; the digest of its points stands in the file's description."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    style = {"svg.fonttype": "none", "svg.hashsalt": "zoo", "font.size": 10}
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
        for name, sets in points().items():
            colour = GENERATIONS[name][1]
            axes.scatter(*zip(*sets["authors"], strict=True), s=28, color=colour, label=name)
            if sets["others"]:
                axes.scatter(
                    *zip(*sets["others"], strict=True),
                    s=34,
                    facecolors="none",
                    edgecolors=colour,
                    linewidths=1.2,
                )
        axes.scatter([], [], facecolors="none", edgecolors="#555555", label="torchvision, timm")
        full = next(row for row in paper_rows() if row.model == "v1_full_conv")
        axes.annotate(
            "V1 with full convolutions",
            (full.madds / 1e6, full.top1),
            xytext=(0, -14),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
        axes.set_xscale("log")
        ticks = (10, 30, 100, 300, 1000, 3000, 10000)
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("multiply-adds of one image, millions (counted here)")
        axes.set_ylabel("published ImageNet top-1, %")
        axes.set_title("Filled: the authors' rows. Open: published checkpoints of others.")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
        about = {"Date": None, "Description": f"points sha256 {points_digest()}"}
        figure.savefig(path, metadata=about if path.suffix == ".svg" else None, dpi=110)
        plt.close(figure)


def main(words: list[str]) -> None:
    """Write the page and its picture."""
    if words:
        raise InputError("zoo", " ".join(words), "takes no arguments")
    draw(PICTURE)
    PAGE.write_text(page())
    console.line(f"{PAGE.relative_to(DOCS.parent)}: {len(paper_rows())} rows")


if __name__ == "__main__":
    run(main)
