"""Weights from anywhere into a network of ours: `load_weights`, `read_weights`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data.preprocessing import Preprocessing
from mobilenet_exp.models import MobileNet
from mobilenet_exp.models.build import nondefault_options
from mobilenet_exp.models.variant import Variant, apply_variant
from mobilenet_exp.papers.rows import published_side
from mobilenet_exp.weights.files import WeightFile, read_file
from mobilenet_exp.weights.layouts import (
    LAYOUTS,
    Layout,
    Tensors,
    check_fit,
    fill_counters,
    recognise,
    take_net,
    to_ours,
)


@dataclass(frozen=True)
class Weights:
    """Weights for one network, not yet in it.

    `tensors` are under our names; `layout` is the file's; `variant` is how their source
    runs them, `preprocessing` how it prepares images; `classes` are names by label,
    None if the file has none; `stem_stride` is what they were trained with. `notes` say
    where all this is from.
    """

    origin: str
    tensors: Tensors
    layout: Layout
    variant: Variant
    preprocessing: Preprocessing
    notes: tuple[str, ...]
    classes: list[str] | None = None
    # of published weights: the `source` of their rows
    source: str | None = None
    # no tensor shows it; 2 in every published network
    stem_stride: int = 2

    @property
    def num_classes(self) -> int | None:
        """Number of rows of the classifier; None if there is no such thing."""
        classifier = self.tensors.get("classifier.weight")
        return len(classifier) if classifier is not None and classifier.ndim == 2 else None

    def into(self, model: MobileNet, *, new_classifier: bool = False) -> list[str]:
        """Put the weights into `model`, all of them and no others, with their variant.

        With `new_classifier` a classifier for a different number of classes stays as the
        model has it; what was left out is returned in words. Raises InputError naming
        the first few tensors that are missing, extra or misshapen.
        """
        tensors, left_out = fill_counters(self.tensors, model), []
        own = model.state_dict()
        theirs = self.num_classes
        if new_classifier and theirs not in (None, model.num_classes):
            kept = {key: own[key] for key in ("classifier.weight", "classifier.bias")}
            left_out.append(f"new classifier: {theirs} classes replaced by {model.num_classes}")
            tensors |= kept
        check_fit(tensors, model, self.layout, self.origin)
        model.load_state_dict(tensors)
        apply_variant(model, self.variant)
        return left_out


def load_weights(
    model: MobileNet,
    path_or_name: str | Path,
    *,
    like: str | None = None,
    key: str | None = None,
) -> MobileNet:
    """Return `model` with published or own weights, ready to evaluate.

    `path_or_name` is a file of any known layout, or `torchvision:IMAGENET1K_V2`,
    `timm:mobilenetv3_large_100.ra_in1k`, which their library downloads or has in its
    cache. The model takes the source's BN eps, activation and order of operations, and
    is in eval mode. `like` names the published weights that a file holds, where its keys
    cannot tell (timm's `tf_` nets), `key` the one to take where it holds several, as
    `state_dict`. Raises InputError, and leaves the model as it was,
    for weights that do not fit.
    """
    read_weights(path_or_name, model, like=like, key=key).into(model)
    return model.eval()


def read_weights(
    path_or_name: str | Path,
    model: MobileNet,
    *,
    like: str | None = None,
    key: str | None = None,
    any_stem: bool = False,
) -> Weights:
    """Read weights for `model` without changing it; see `load_weights`.

    With `any_stem` the model's stem stride need not be that of the weights.
    """
    origin = str(path_or_name)
    if not isinstance(model, MobileNet):
        problem = f"is read into this repository's own networks alone, not into {model.name}"
        raise InputError("weights", origin, problem)
    if key and origin.startswith(("torchvision:", "timm:")):
        raise InputError("weights_key", key, "is only for a file")
    if like and origin.startswith(("torchvision:", "timm:")):
        raise InputError("weights_like", like, "is only for a file; a name brings its own settings")
    if origin.startswith(("torchvision:", "timm:")):
        # timm takes most of a second to import, and our own files need none of it
        from mobilenet_exp.weights.published import find_published

        published = find_published(origin, model.name, model.width_mult)
        tensors = published.fetch()
        layout = recognise(set(tensors), origin)
        return Weights(
            origin,
            to_ours(tensors, model, layout, origin),
            layout,
            published.variant,
            published.preprocessing,
            (f"settings of {published.name}",),
            source=published.name,
        )
    file = read_file(origin, key=key)
    tensors, removed = take_net(file.tensors, origin, file.prefix, file.name)
    file = replace(file, notes=(*file.notes, *removed))
    layout = recognise(set(tensors), origin)
    weights = Weights(
        origin,
        to_ours(tensors, model, layout, origin),
        layout,
        layout.variant(),
        _usual(model, layout),
        (*file.notes, f"preprocessing is not in the file; using {layout.title}'s usual"),
    )
    if layout is LAYOUTS["ours"]:
        if like:
            raise InputError("weights_like", like, f"{origin} is a file of this repository")
        return _own(weights, file, model, any_stem=any_stem)
    if like and layout.library != like.partition(":")[0]:
        raise InputError("weights_like", like, f"{origin} has the layout of {layout.title}")
    from mobilenet_exp.weights.published import find_published, find_released

    known = (
        find_published(like, model.name, model.width_mult, key="weights_like")
        if like
        else find_released(file.sha256, model.name, model.width_mult)
    )
    if known is None:
        return weights
    found = "as asked" if like else "known by its content"
    return replace(
        weights,
        variant=known.variant,
        preprocessing=known.preprocessing,
        notes=(*file.notes, f"settings of {known.name}, {found}"),
        source=known.name,
    )


def _usual(model: MobileNet, layout: Layout) -> Preprocessing:
    return Preprocessing(resolution=published_side(model.name), interpolation=layout.interpolation)


def _own(weights: Weights, file: WeightFile, model: MobileNet, *, any_stem: bool) -> Weights:
    """Return our own weights with the settings of their checkpoint, else as the model is built."""
    config: dict[str, Any] | None = file.extras.get("config")
    if config is None:
        return replace(weights, variant=model.variant, stem_stride=model.stem_stride)
    trained_with = _telling(config["model"])
    trained_with["stem_stride"] = stem_stride = config["model"]["stem_stride"] or 2
    for key, asked in _built_with(model).items():
        if key == "stem_stride" and any_stem:
            continue
        if trained_with[key] != asked:
            then = trained_with[key]
            problem = f"{weights.origin} was trained with {then}; give model.{key}={then}"
            raise InputError(f"model.{key}", asked, problem)
    data = config["data"]
    variant = file.extras.get("dialect")
    return replace(
        weights,
        variant=Variant(**variant) if variant else _trained_variant(config, model),
        preprocessing=Preprocessing(
            resolution=data["resolution"],
            crop_pct=data["crop_pct"],
            interpolation=data.get("interpolation", "bilinear"),
            mean=data["mean"],
            std=data["std"],
        ),
        classes=file.extras.get("classes"),
        notes=(*file.notes, f"settings of its run, epoch {file.extras.get('epoch')}"),
        stem_stride=stem_stride,
    )


def _telling(model: dict[str, Any]) -> dict[str, Any]:
    """Return what tells networks apart that have the same tensors; activations are a variant."""
    options = {key: value for key, value in model["args"].items() if key != "activation"}
    return {
        "name": model["name"],
        "width_mult": model["width_mult"],
        "args": nondefault_options(options),
    }


def _built_with(model: MobileNet) -> dict[str, Any]:
    described = {"name": model.name, "width_mult": model.width_mult, "args": model.args}
    return _telling(described) | {"stem_stride": model.stem_stride}


def _trained_variant(config: dict[str, Any], model: MobileNet) -> Variant:
    # checkpoints from before variants were kept: only eps and activation could differ
    activation = config["model"]["args"].get("activation") or model.variant.activation
    eps = config["model"]["bn_eps"] or model.variant.bn_eps
    return replace(model.variant, activation=activation, bn_eps=eps)
