"""The published result rows, read from `paper_rows.csv`. Knows neither torch nor our models.

A row is what a source prints for one network on ImageNet, and beside it the exact
counts of the network that its tables describe. Where a print cannot be reached by any
reading of the tables, `unreached` says so.

Here are the published rows of the six registered nets, whatever their width and
resolution. Left out are rows of other architectures: V1's full-convolution and shallow
ablations, V3 EdgeTPU, kuan-wang's own V3 variant, and timm's deeper or headed variants
(`_100h`, `_110d`, `_120d`, `_150d`, `_rw`).
"""

import csv
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

# Searched in this order when no source is named: the paper's last version, its
# appendix, then the authors' own released checkpoints.
AUTHORS = ("paper", "paper_appendix", "slim")


@dataclass(frozen=True)
class PaperRow:
    """One published row; a figure that the source does not print is None.

    `top1`, `top5` in percent; `madds_m`, `params_m` in millions, as printed; `madds`,
    `params` exact integers of the table's net with 1000 classes; `options` the
    `build_model` arguments that build it, beyond name and width.
    """

    model: str
    width_mult: float
    resolution: int
    source: str
    top1: float | None
    top5: float | None
    madds_m: float | None
    params_m: float | None
    madds: int
    params: int
    options: dict[str, object]
    citation: str
    unreached: str
    note: str

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


@cache
def paper_rows() -> tuple[PaperRow, ...]:
    """Return every row, by model and source; each (model, width, resolution, source) once."""
    with (Path(__file__).parent / "paper_rows.csv").open(newline="") as file:
        return tuple(_parse(row) for row in csv.DictReader(file))


def paper_row(
    model: str,
    *,
    width_mult: float = 1.0,
    resolution: int = 224,
    source: str | None = None,
) -> PaperRow | None:
    """Return the row published for this net, or None if no such row exists.

    Without `source`: the paper's own, else its appendix, else the authors' slim README.
    With it: exactly that one, e.g. `paper_early`, `seed:sgd`, `torchvision:IMAGENET1K_V2`.
    """
    for wanted in (source,) if source else AUTHORS:
        for row in paper_rows():
            if (row.model, row.width_mult, row.resolution, row.source) == (
                model,
                width_mult,
                resolution,
                wanted,
            ):
                return row
    return None


def _parse(row: dict[str, str]) -> PaperRow:
    def number(key: str) -> float | None:
        return float(row[key]) if row[key] else None

    return PaperRow(
        model=row["model"],
        width_mult=float(row["width_mult"]),
        resolution=int(row["resolution"]),
        source=row["source"],
        top1=number("top1"),
        top5=number("top5"),
        madds_m=number("madds_m"),
        params_m=number("params_m"),
        madds=int(row["madds"]),
        params=int(row["params"]),
        options=dict(_option(text) for text in row["options"].split(";") if text),
        citation=row["citation"],
        unreached=row["unreached"],
        note=row["note"],
    )


def _option(text: str) -> tuple[str, object]:
    key, value = text.split("=")
    return key, {"true": True, "false": False}.get(value) if value.isalpha() else int(value)
