"""The published result rows, read from `paper_rows.csv`.

A row is what a source prints for one network on ImageNet, and beside it the exact
counts of the network that its tables describe. Where no reading of the tables gives a
printed figure, `unreached` says so.

Sources: `paper`, the network's own, last version (`paper_early` before V3's v5,
`paper_appendix`, `paper_ablation:*`, `paper_distilled`, `paper_int8`); `slim`, the
authors' released checkpoints (`slim_int8`: quantised); `v2_paper` to `v4_paper`, a later
paper that quotes or retrains it; `kuan-wang` and `marvis:*`, the V3 and V1 repositories;
`torchvision:*`, `timm:*`, `d-li14*`, `tonylins`, `ascend:*`, `keras`, `tf_garden`.
V1's Figures 4 and 5 plot 16 points without printing them; slim's rows are that grid.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

# images that every published accuracy is measured on: ImageNet's validation set
NUM_IMAGES = 50_000

# Searched in this order when no source is named: the paper's last version, its
# appendix, then what the authors released; kuan-wang's variant has its own.
AUTHORS = ("paper", "paper_appendix", "slim", "kuan-wang", "slim_int8")

# Networks of other people that have rows here and are not built.
NOT_BUILT = {
    "v1_100h": "timm's V1 with a 1x1 convolution before the pooling",
    "v2_110d": "timm's deeper V2",
    "v2_120d": "timm's deeper V2",
    "v3_large_150d": "timm's wider and deeper V3",
    "v3_rw": "timm's first V3: no bias in the head, squeeze-excite not rounded",
    "edgetpu_v2_m": "TF model garden's EdgeTPU V2, in no MobileNet paper",
    "kuanwang_v3_small_first": "kuan-wang's first release, of another head",
    "v4_conv_aa_large": "timm's V4 with blurred strides",
    "v4_conv_blur_medium": "timm's V4 with blurred strides",
}


@dataclass(frozen=True)
class PaperRow:
    """One published row; a figure that the source does not print is None.

    `top1`, `top5` in percent; `madds_m`, `params_m` in millions, as printed; `madds`,
    `params` exact integers of the table's net with 1000 classes; `madds_as_printed` the
    exact count by the source's own convention, where that is not ours; `options` the
    `build_model` arguments that build it, beyond name and width; `crop_pct` the fraction
    of the image that the source evaluated on, where it says so.
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
    madds_as_printed: int
    options: dict[str, Any]
    crop_pct: float | None
    citation: str
    unreached: str
    note: str

    @property
    def convention(self) -> str:
        """How the source counts multiply-adds, as `profile_model` names it."""
        return "paper" if self.madds_as_printed == self.madds else "kuanwang"

    @property
    def is_quantised(self) -> bool:
        """Whether the accuracy was measured on an int8 network."""
        return self.source.endswith("int8")

    def reaches(self, kind: str) -> bool:
        """Return whether the exact `madds` or `params` agree with the printed figure.

        That is, within one unit of the last printed digit; true where nothing is printed.
        """
        printed = getattr(self, f"{kind}_m")
        if printed is None:
            return True
        counted = self.madds_as_printed if kind == "madds" else self.params
        places = len(f"{printed:g}".partition(".")[2])
        return abs(printed - counted / 1e6) < 10.0**-places


@cache
def paper_rows() -> tuple[PaperRow, ...]:
    """Return every row, by model and source; each (model, width, resolution, source) once."""
    found = []
    with (Path(__file__).parent / "paper_rows.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            printed = {
                key: float(row[key]) if row[key] else None
                for key in ("top1", "top5", "madds_m", "params_m", "crop_pct")
            }
            # head_width=1280 is a number, hswish='16' text
            options = dict(text.split("=") for text in row["options"].split(";") if text)
            paper_row = PaperRow(
                model=row["model"],
                width_mult=float(row["width_mult"]),
                resolution=int(row["resolution"]),
                source=row["source"],
                madds=int(row["madds"]),
                params=int(row["params"]),
                madds_as_printed=int(row["madds_as_printed"] or row["madds"]),
                options={
                    key: int(value) if value.isdecimal() else value.strip("'")
                    for key, value in options.items()
                },
                citation=row["citation"],
                unreached=row["unreached"],
                note=row["note"],
                **printed,
            )
            found.append(paper_row)
    return tuple(found)


def paper_row(
    model: str,
    *,
    width_mult: float = 1.0,
    resolution: int = 224,
    source: str | None = None,
) -> PaperRow | None:
    """Return the row published for this net, or None if no such row exists.

    Without `source`: the paper's own, else its appendix, else the authors' slim README.
    With it: exactly that one, e.g. `paper_early`, `marvis:sgd`, `torchvision:IMAGENET1K_V2`.
    """
    found = {
        row.source: row
        for row in paper_rows()
        if (row.model, row.width_mult, row.resolution) == (model, width_mult, resolution)
    }
    return next((found[each] for each in ((source,) if source else AUTHORS) if each in found), None)


def published_side(model: str) -> int:
    """Return the side in pixels of the network's first row by its authors; 224 without one."""
    sides = (row.resolution for row in paper_rows() if row.model == model and row.source in AUTHORS)
    return next(sides, 224)
