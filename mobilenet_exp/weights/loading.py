"""Weights from anywhere: `load_weights` into a network of ours, `export_weights` out of it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data.preprocessing import Preprocessing
from mobilenet_exp.models import MobileNet
from mobilenet_exp.models.dialect import Dialect, adopt, dialect_of
from mobilenet_exp.weights.export import export_weights
from mobilenet_exp.weights.files import WeightFile, read_file
from mobilenet_exp.weights.layouts import (
    LAYOUTS,
    Layout,
    Tensors,
    check_fit,
    fill_counters,
    recognise,
    to_ours,
)
from mobilenet_exp.weights.published import find_published, find_released

__all__ = ["Weights", "export_weights", "load_weights", "read_weights"]

# published where no model's own side is known
RESOLUTIONS = {"v4_conv_medium": 256, "v4_hybrid_medium": 256} | dict.fromkeys(
    ("v4_conv_large", "v4_hybrid_large"), 384
)


@dataclass(frozen=True)
class Weights:
    """Weights for one network, not yet in it.

    `tensors` are under our names; `layout` is the file's; `dialect` is how their source
    runs them, `preprocessing` how it prepares images; `classes` are names by label,
    None if the file has none. `notes` say in words where all this is from.
    """

    origin: str
    tensors: Tensors
    layout: Layout
    dialect: Dialect
    preprocessing: Preprocessing
    notes: tuple[str, ...]
    classes: list[str] | None = None
    # of published weights: the `source` of their rows in `paper`
    source: str | None = None

    @property
    def num_classes(self) -> int | None:
        """Number of rows of the classifier; None if there is no such thing."""
        classifier = self.tensors.get("classifier.weight")
        return len(classifier) if classifier is not None and classifier.ndim == 2 else None

    def into(self, model: MobileNet, *, new_classifier: bool = False) -> list[str]:
        """Put the weights into `model`, all of them and no others, in their dialect.

        With `new_classifier` a classifier of another number of classes stays as the
        model has it; what was left out is returned in words. Raises InputError naming
        the first few tensors that are missing, extra or misshapen.
        """
        tensors, left_out = fill_counters(self.tensors, model), []
        own = model.state_dict()
        theirs = self.num_classes
        if new_classifier and theirs not in (None, model.classifier.out_features):
            kept = {key: own[key] for key in ("classifier.weight", "classifier.bias")}
            left_out.append(
                f"new classifier: {theirs} classes replaced by {model.classifier.out_features}"
            )
            tensors |= kept
        check_fit(tensors, model, self.layout, self.origin)
        model.load_state_dict(tensors)
        adopt(model, self.dialect)
        return left_out


def load_weights(
    model: MobileNet, path_or_name: str | Path, *, like: str | None = None
) -> MobileNet:
    """Return `model` with published or own weights, ready to evaluate.

    `path_or_name` is a file of any known layout, or `torchvision:IMAGENET1K_V2`,
    `timm:mobilenetv3_large_100.ra_in1k`, which their library downloads or has in its
    cache. The model takes the source's BN eps, activation and order of operations, and
    is in eval mode. `like` names the published weights that a file holds, where its keys
    cannot tell (timm's `tf_` nets). Raises InputError, and leaves the model as it was,
    for weights that do not fit.
    """
    read_weights(path_or_name, model, like=like).into(model)
    return model.eval()


def read_weights(path_or_name: str | Path, model: MobileNet, *, like: str | None = None) -> Weights:
    """Read weights for `model` without changing it; see `load_weights`."""
    origin = str(path_or_name)
    if like and origin.startswith(("torchvision:", "timm:")):
        raise InputError("weights_like", like, "is for a file; a name brings its own settings")
    if origin.startswith(("torchvision:", "timm:")):
        published = find_published(origin, model.name, model.width_mult)
        tensors = published.fetch()
        layout = recognise(set(tensors), origin)
        return Weights(
            origin,
            to_ours(tensors, model, layout, origin),
            layout,
            published.dialect,
            published.preprocessing,
            (f"settings of {published.name}",),
            source=published.name,
        )
    file = read_file(origin)
    layout = recognise(set(file.tensors), origin)
    weights = Weights(
        origin,
        to_ours(file.tensors, model, layout, origin),
        layout,
        layout.dialect(),
        _usual(model, layout),
        (*file.notes, f"preprocessing not in the file: {layout.title}'s usual"),
    )
    if layout is LAYOUTS["ours"]:
        if like:
            raise InputError("weights_like", like, f"{origin} is this repository's own")
        return _own(weights, file, model)
    if like and not layout.title.startswith(like.partition(":")[0]):
        raise InputError("weights_like", like, f"{origin} is of {layout.title}")
    if like:
        published = find_published(like, model.name, model.width_mult, key="weights_like")
    else:
        published = find_released(file.sha256, model.name, model.width_mult)
    if published is None:
        return weights
    found = "as asked" if like else "known by its content"
    return replace(
        weights,
        dialect=published.dialect,
        preprocessing=published.preprocessing,
        notes=(*file.notes, f"settings of {published.name}, {found}"),
        source=published.name,
    )


def _usual(model: MobileNet, layout: Layout) -> Preprocessing:
    return Preprocessing(
        resolution=RESOLUTIONS.get(model.name, 224), interpolation=layout.interpolation
    )


def _own(weights: Weights, file: WeightFile, model: MobileNet) -> Weights:
    """Settings of our own weights: from the checkpoint, else as the model is built."""
    config: dict[str, Any] | None = file.extras.get("config")
    if config is None:
        return replace(weights, dialect=dialect_of(model))
    trained_with = config["model"] | {"args": _telling(config["model"]["args"])}
    for key, asked in _built_with(model).items():
        trained = trained_with[key]
        if trained != asked:
            allowed = f"{weights.origin} was trained with {trained}"
            raise InputError(f"model.{key}", asked, allowed)
    data = config["data"]
    dialect = file.extras.get("dialect")
    return replace(
        weights,
        dialect=Dialect(**dialect) if dialect else _trained_dialect(config, model),
        preprocessing=Preprocessing(
            resolution=data["resolution"],
            crop_pct=data["crop_pct"],
            interpolation=data.get("interpolation", "bilinear"),
            mean=data["mean"],
            std=data["std"],
        ),
        classes=file.extras.get("classes"),
        notes=(*file.notes, f"settings of its run, epoch {file.extras.get('epoch')}"),
    )


# options at which a net is as without them; the activation is part of the dialect
SILENT = {"width_rule": "paper", "hswish": "table", "head_width": None}


def _telling(args: dict[str, Any]) -> dict[str, Any]:
    """Return the options that make it another net."""
    return {
        key: value
        for key, value in args.items()
        if key != "activation" and (key not in SILENT or SILENT[key] != value)
    }


def _built_with(model: MobileNet) -> dict[str, Any]:
    return {
        "name": model.name,
        "width_mult": model.width_mult,
        "stem_stride": model.stem.conv.stride[0],
        "args": _telling(model.args),
    }


def _trained_dialect(config: dict[str, Any], model: MobileNet) -> Dialect:
    # checkpoints before dialects were kept: only eps and activation could differ
    trained = replace(dialect_of(model), activation=config["model"]["args"].get("activation"))
    eps = config["model"]["bn_eps"]
    return trained if eps is None else replace(trained, bn_eps=eps)
