"""Compares a run with its published row, where the two are comparable.

Counts are compared for the net as published (224 px, 1000 classes); an accuracy only
if the run repeats the row's setting on ImageNet.
"""

from dataclasses import asdict, dataclass

import torch

from mobilenet_exp.config.schema import ImagesConfig, ModelConfig
from mobilenet_exp.models.build import build_model, nondefault_options
from mobilenet_exp.models.profiling import Profile, profile_model
from mobilenet_exp.papers.rows import AUTHORS, NUM_IMAGES, PaperRow, paper_rows

# V1's rows are compared with either: the paper's V1 has ReLU, its authors' code ReLU6.
PUBLISHED_ACTIVATIONS = ("relu", "relu6")


@dataclass(frozen=True)
class NoPaperRow:
    """The comparison of a network without a published row; `reason` says why it has none."""

    reason: str

    def summary(self, top1: float | None = None, top5: float | None = None) -> dict[str, object]:
        """Return the flat keys for a dashboard."""
        return {"paper/comparable": False, "paper/reason": self.reason}

    def table(self, ours: Profile, top1: float, top5: float) -> tuple[list[str], list[list]]:
        """Return the run's own figures as columns and rows."""
        own = _figures(ours.madds, ours.params, top1, top5)
        return ["figure", "this run"], [[key, value] for key, value in own.items()]

    def to_results(self, top1: float, top5: float) -> dict[str, object]:
        """Return the entries of results.json."""
        return {"paper": None, "paper_reason": self.reason, "reference": None}


@dataclass(frozen=True)
class Comparison:
    """What a run is compared with.

    `row` is the published row of the same net and width, at the run's resolution if
    there is one, else at 224 px. `published` counts that net as built here, `as_printed`
    by the row's own convention. `reason` says why `row` is not the run's own experiment;
    None if it is.
    """

    row: PaperRow
    published: Profile
    as_printed: Profile
    reason: str | None

    @property
    def paper(self) -> PaperRow | None:
        """The row that the run's accuracy is comparable with, or None."""
        return None if self.reason else self.row

    def summary(self, top1: float | None = None, top5: float | None = None) -> dict[str, object]:
        """Return the flat keys for a dashboard; accuracies in percent, None while unknown.

        `delta/*` is ours minus the printed figure `paper/*`. For counts, ours is `published/*`:
        the net as published, counted here by its source's convention. For accuracies it is the
        run's own, only if the run repeats the row's experiment.
        """
        summary: dict[str, object] = {
            "paper/comparable": self.reason is None,
            "paper/source": f"{self.row.source}: {self.row.citation}",
            "paper/dataset": "ImageNet",
            "paper/resolution": self.row.resolution,
            "published/madds_m": self.as_printed.madds / 1e6,
            "published/params_m": self.published.params / 1e6,
        }
        if self.reason:
            summary["paper/reason"] = self.reason
        for key, ours in self._ours(top1, top5).items():
            printed = getattr(self.row, key)
            if printed is not None:
                summary[f"paper/{key}"] = printed
                if ours is not None:
                    summary[f"delta/{key}"] = ours - printed
        return summary

    def table(self, ours: Profile, top1: float, top5: float) -> tuple[list[str], list[list]]:
        """Return a row for each figure: the run's, the published net's, and what others print.

        Columns of one net stand together. Accuracies in percent, counts in millions; a gap
        is None where two figures do not compare.
        """
        own = _figures(ours.madds, ours.params, top1, top5)
        built = _figures(self.as_printed.madds, self.published.params, None, None)
        delta = self._ours(top1, top5)
        peers = self._peers()
        source = self.row.source
        columns = ["figure", "this run", "gap to paper", f"{source} prints"]
        columns += [f"{source}'s net, counted here", "gap of that count"]
        rows = []
        for key, value in own.items():
            printed, counted = getattr(self.row, key), built[key]
            is_own = key.startswith("top") or ours == self.published
            gaps = [delta[key] if is_own else None, counted]
            gap, gap_of_count = (
                None if None in (each, printed) else each - printed for each in gaps
            )
            row = [key, value, gap, printed, counted, gap_of_count]
            rows.append(row + [getattr(peer, key) for peer in peers])
        return columns + [f"{peer.source} prints" for peer in peers], rows

    def _peers(self) -> list[PaperRow]:
        """Return what other sources print about the same net."""
        same = ("model", "width_mult", "resolution", "options")
        return [
            row
            for row in paper_rows()
            if all(getattr(row, key) == getattr(self.row, key) for key in same)
            and row.source != self.row.source
        ]

    def to_results(self, top1: float, top5: float) -> dict[str, object]:
        """Return the entries of results.json; `paper` is null where `paper_reason` is not."""
        delta = {
            key: ours - printed
            for key, ours in self._ours(top1, top5).items()
            if ours is not None and (printed := getattr(self.row, key)) is not None
        }
        return {
            "paper": asdict(self.paper) if self.paper else None,
            "paper_reason": self.reason,
            "reference": {
                "row": asdict(self.row),
                "counted": self.published._asdict(),
                "delta": delta,
            },
        }

    def _ours(self, top1: float | None, top5: float | None) -> dict[str, float | None]:
        """Return our figure for each one that a row may print; None where not comparable."""
        return {
            "madds_m": self.as_printed.madds / 1e6,
            "params_m": self.published.params / 1e6,
            "top1": None if self.reason else top1,
            "top5": None if self.reason else top5,
        }


def _figures(
    madds: int, params: int, top1: float | None, top5: float | None
) -> dict[str, float | None]:
    return {"top1": top1, "top5": top5, "madds_m": madds / 1e6, "params_m": params / 1e6}


def compare(
    model: ModelConfig,
    data: ImagesConfig,
    num_classes: int,
    *,
    source: str | None = None,
    num_images: int | None = None,
    is_int8: bool = False,
) -> Comparison | NoPaperRow:
    """Return the comparison of a network and its images with the published row.

    `source` is that of published weights, whose row is then preferred; `num_images` is how many
    were scored, where that is known; `is_int8` whether the network is int8.
    """
    options = nondefault_options(model.args)
    if options.get("activation") in PUBLISHED_ACTIVATIONS:
        del options["activation"]
    row = _find(model, data.resolution, options, source)
    reason = _reason(model, data, options, row, num_classes, num_images)
    if reason is None and is_int8:
        reason = "the network is int8, the row's is not"
    row = row or _find(model, 224, options, source)
    if row is None:
        unpublished = _unpublished(model, data, options)
        parts = dict.fromkeys(part for part in (reason, unpublished) if part)
        return NoPaperRow("; ".join(parts))
    with torch.device("meta"):
        net = build_model(row.model, width_mult=row.width_mult, **row.options)
    published = profile_model(net, row.resolution)
    as_printed = published
    if row.convention != "paper":
        as_printed = profile_model(net, row.resolution, row.convention)
    return Comparison(row, published, as_printed, reason)


def _reason(
    model: ModelConfig,
    data: ImagesConfig,
    options: dict[str, object],
    row: PaperRow | None,
    num_classes: int,
    num_images: int | None,
) -> str | None:
    """Say why a run does not repeat the row's own experiment; None if it does."""
    if not data.is_imagenet:
        return f"{data.name} is not ImageNet, so its top-1 is not comparable with the paper's"
    if num_classes != 1000:
        return f"{num_classes} classes, the paper's net has 1000"
    if model.stem_stride == 1:
        return "stem_stride 1, the paper's net has 2"
    if row is None:
        return _unpublished(model, data, options)
    if row.is_quantised:
        return "published for the int8 network only"
    if num_images not in (None, NUM_IMAGES):
        return f"{num_images:,} images scored, ImageNet's validation set has {NUM_IMAGES:,}"
    return None


def _unpublished(model: ModelConfig, data: ImagesConfig, options: dict) -> str:
    options = {key: value for key, value in options.items() if key != "arch"}
    extra = f" with {options}" if options else ""
    return f"no row published for {model.title} {model.width_mult:g}{extra} at {data.resolution} px"


def _find(
    model: ModelConfig, resolution: int, options: dict, source: str | None
) -> PaperRow | None:
    rows = {
        row.source: row
        for row in reversed(paper_rows())
        if (row.model, row.width_mult, row.resolution, row.options)
        == (model.name, model.width_mult, resolution, options)
    }
    ablations = sorted(each for each in rows if each.startswith("paper_ablation"))
    for wanted in (source, *AUTHORS, "paper_early", *ablations):
        if wanted in rows:
            return rows[wanted]
    return None
