"""Sets a run beside its published row, like with like only.

Counts are compared for the net as published (224 px, 1000 classes); an accuracy only
if the run repeats the row's setting on ImageNet.
"""

from dataclasses import dataclass

import torch

from mobilenet_exp.config.schema import DataConfig, ModelConfig
from mobilenet_exp.data.imagenet import NUM_VAL
from mobilenet_exp.models import build_model
from mobilenet_exp.models.profiling import Profile, profile_model
from mobilenet_exp.papers.rows import AUTHORS, PaperRow, paper_rows

# Options that leave a net as published: the paper's V1 has ReLU, the authors' code ReLU6.
AS_PUBLISHED = (
    ("activation", None),
    ("activation", "relu"),
    ("activation", "relu6"),
    ("width_rule", "paper"),
    ("hswish", "table"),
)


@dataclass(frozen=True)
class Comparison:
    """What a run may be held against.

    `row` is the published row of the same net and width, at the run's resolution if
    there is one, else at 224 px; None if nothing was published. `published` counts
    that net as built here, and `as_printed` by the row's own convention. `reason` says
    why `row` is not the run's own; None if it is.
    """

    row: PaperRow | None
    published: Profile | None
    reason: str | None
    as_printed: Profile | None = None

    @property
    def paper(self) -> PaperRow | None:
        """The row that the run's own accuracy answers to, or None."""
        return None if self.reason else self.row

    def summary(self, top1: float | None = None, top5: float | None = None) -> dict[str, object]:
        """Return the flat keys for a dashboard; accuracies in percent, None while unknown.

        `delta/*` is ours minus the print: counts of the net as published, accuracies
        only where the run answers to the row.
        """
        summary: dict[str, object] = {"paper/comparable": self.reason is None}
        if self.reason:
            summary["paper/reason"] = self.reason
        if self.row is None:
            return summary
        summary |= {
            "paper/source": f"{self.row.source}: {self.row.citation}",
            "paper/dataset": "ImageNet",
            "paper/resolution": self.row.resolution,
            "published/madds_m": self.published.madds / 1e6,
            "published/params_m": self.published.params / 1e6,
        }
        for key, counted in (
            ("madds_m", self.as_printed.madds / 1e6),
            ("params_m", self.published.params / 1e6),
            ("top1", top1 if self.paper else None),
            ("top5", top5 if self.paper else None),
        ):
            printed = getattr(self.row, key)
            if printed is not None:
                summary[f"paper/{key}"] = printed
                if counted is not None:
                    summary[f"delta/{key}"] = counted - printed
        return summary

    def to_results(self, top1: float, top5: float) -> dict[str, object]:
        """Return the entries of results.json; `paper` is null unless `reason` is."""
        results: dict[str, object] = {
            "paper": self.paper.to_dict() if self.paper else None,
            "paper_reason": self.reason,
            "reference": None,
        }
        if self.row:
            results["reference"] = {
                "row": self.row.to_dict(),
                "counted": self.published._asdict(),
                "delta": {
                    key.removeprefix("delta/"): value
                    for key, value in self.summary(top1, top5).items()
                    if key.startswith("delta/")
                },
            }
        return results


def compare(
    model: ModelConfig,
    data: DataConfig,
    num_classes: int,
    *,
    source: str | None = None,
    num_images: int | None = None,
) -> Comparison:
    """Find the published row for a network and its images, and say whether it is its own.

    `source` is the row's, for weights that someone published; `num_images` how many
    were scored, where that is known.
    """
    options = {key: value for key, value in model.args.items() if (key, value) not in AS_PUBLISHED}
    row = _find(model, data.resolution, options, source)
    reason = None
    if data.name != "imagenet":
        reason = f"{data.name} is not ImageNet: its top-1 is no match for the paper's"
    elif num_classes != 1000:
        reason = f"{num_classes} classes, the paper's net has 1000"
    elif model.stem_stride != 2:
        reason = f"stem_stride {model.stem_stride}, the paper's net has 2"
    elif row is None:
        reason = _unpublished(model, data, options)
    elif row.is_quantised:
        reason = "published for its 8-bit form only"
    elif num_images not in (None, NUM_VAL):
        reason = f"{num_images:,} images scored, ImageNet's validation set has {NUM_VAL:,}"
    row = row or _find(model, 224, options, source)
    if row is None:
        unpublished = _unpublished(model, data, options)
        both = reason if reason == unpublished else f"{reason}; {unpublished}"
        return Comparison(None, None, both)
    with torch.device("meta"):
        net = build_model(row.model, width_mult=row.width_mult, **row.options)
    published = profile_model(net, row.resolution)
    as_printed = profile_model(net, row.resolution, row.convention)
    return Comparison(row, published, reason, as_printed)


def _unpublished(model: ModelConfig, data: DataConfig, options: dict) -> str:
    extra = f" with {options}" if options else ""
    return f"no row published for {model.name} {model.width_mult:g}{extra} at {data.resolution} px"


def _find(
    model: ModelConfig, resolution: int, options: dict, source: str | None
) -> PaperRow | None:
    rows = [
        row
        for row in paper_rows()
        if (row.model, row.width_mult, row.resolution, row.options)
        == (model.name, model.width_mult, resolution, options)
    ]
    ablations = sorted({row.source for row in rows if row.source.startswith("paper_ablation")})
    for wanted in (source, *AUTHORS, "paper_early", *ablations):
        for row in rows:
            if row.source == wanted:
                return row
    return None
