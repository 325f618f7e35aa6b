"""Networks with their weights, from wherever they come: `load_weights`, `load_model`, `load_run`.

`read_weights` reads a file of any known layout, or published weights, under our names;
`LoadedModel` is a network with weights in it, and what is known about both.
"""

from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mobilenet_exp.config.convert import stored_config
from mobilenet_exp.config.identity import weights_identity
from mobilenet_exp.config.schema import (
    Config,
    EvalModelConfig,
    ModelConfig,
    Preprocessing,
    WeightsConfig,
)
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.datasets import imagenet
from mobilenet_exp.models import MobileNet
from mobilenet_exp.models.build import config_model, nondefault_options
from mobilenet_exp.models.fake_quantized import FakeQuantized
from mobilenet_exp.models.profiling import Profile, profile_model
from mobilenet_exp.models.variant import Variant, apply_config, apply_variant, describe_variant
from mobilenet_exp.papers.rows import published_side
from mobilenet_exp.weights.checkpoint import load_checkpoint, restore_model, restore_ranges
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
from mobilenet_exp.weights.runtime_files import (
    ExportedModel,
    is_exported,
    read_exported,
    settings_of,
)

PREPROCESSING = tuple(entry.name for entry in fields(Preprocessing))


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
        model has it; returns lines about what was left out. Raises InputError naming
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
        from mobilenet_exp.weights.pretrained import find_published

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
        Preprocessing(resolution=published_side(model.name), interpolation=layout.interpolation),
        (*file.notes, f"preprocessing is not in the file; using {layout.title}'s usual"),
    )
    if layout is LAYOUTS["ours"]:
        if like:
            raise InputError("weights_like", like, f"{origin} is a file of this repository")
        return _own(weights, file, model, any_stem=any_stem)
    if like and layout.library != like.partition(":")[0]:
        raise InputError("weights_like", like, f"{origin} has the layout of {layout.title}")
    from mobilenet_exp.weights.pretrained import find_published, find_released

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


def _own(weights: Weights, file: WeightFile, model: MobileNet, *, any_stem: bool) -> Weights:
    """Return our own weights with the settings of their checkpoint, else as the model is built."""
    config: dict[str, Any] | None = file.extras.get("config")
    if config is None:
        return replace(weights, variant=model.variant, stem_stride=model.stem_stride)
    trained_with = _network_of(config["model"])
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


def _network_of(model: dict[str, Any]) -> dict[str, Any]:
    """Return what tells networks apart that have the same tensors; activations are a variant."""
    options = {key: value for key, value in model["args"].items() if key != "activation"}
    return {
        "name": model["name"],
        "width_mult": model["width_mult"],
        "args": nondefault_options(options),
    }


def _built_with(model: MobileNet) -> dict[str, Any]:
    described = {"name": model.name, "width_mult": model.width_mult, "args": model.args}
    return _network_of(described) | {"stem_stride": model.stem_stride}


def _trained_variant(config: dict[str, Any], model: MobileNet) -> Variant:
    # checkpoints from before variants were kept: only eps and activation could differ
    activation = config["model"]["args"].get("activation") or model.variant.activation
    eps = config["model"]["bn_eps"] or model.variant.bn_eps
    return replace(model.variant, activation=activation, bn_eps=eps)


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode, and what is known about its weights.

    `origin` is the path or name as given, `digest` what tells its content apart;
    `classes` are names by label, None if the weights have none; `source` is the source of
    published weights' rows; `folder` is the folder of the run that trained them, and
    `trained_by` its configuration and `epoch` the epochs completed, None without a run;
    `notes` say where settings are from; `fake_quantized` has the int8 ranges of a run with
    quantisation-aware training.
    """

    model: MobileNet | ExportedModel
    config: ModelConfig
    preprocessing: Preprocessing
    origin: str
    digest: str
    notes: tuple[str, ...]
    classes: list[str] | None = None
    source: str | None = None
    folder: Path | None = None
    trained_by: Config | None = None
    epoch: int | None = None
    fake_quantized: dict[str, Any] | None = None

    @cached_property
    def network(self) -> nn.Module:
        """Return the network to run, fake-quantised if it was so in training.

        Raises InputError if that needs a library that is missing.
        """
        if self.fake_quantized is None:
            return self.model
        assert self.trained_by is not None
        bits = self.trained_by.train.int8_weights
        fake_quantized = FakeQuantized(
            self.model, asked_by=("checkpoint", self.origin), weight_bits=bits
        )
        restore_ranges(fake_quantized, {"rounding": self.fake_quantized}, self.origin)
        return fake_quantized.eval()

    @property
    def is_int8(self) -> bool:
        """Return whether it is int8."""
        if isinstance(self.model, ExportedModel):
            return self.model.metadata.form.startswith("int8")
        return self.fake_quantized is not None

    @property
    def num_classes(self) -> int:
        return self.model.num_classes

    @property
    def variant(self) -> dict[str, Any] | None:
        """Return how its weights are run; None of a network without variants."""
        variant = getattr(self.model, "variant", None)
        return asdict(variant) if variant else None

    def profile(self, resolution: int) -> Profile:
        """Count the network as it was built, whatever runs it."""
        model = self.model.like if isinstance(self.model, ExportedModel) else self.model
        return profile_model(model, resolution)

    def names(self) -> list[str]:
        """Return a name for each answer; ImageNet's for a net of 1000 classes."""
        if self.classes == imagenet.class_ids():
            return imagenet.class_names()
        if self.classes:
            # a net may have more answers than its data has classes
            extra = range(len(self.classes), self.num_classes)
            return [*self.classes, *(f"class {index}" for index in extra)]
        if self.num_classes == 1000:
            return imagenet.class_names()
        return [str(index) for index in range(self.num_classes)]


def load_model(config: WeightsConfig) -> LoadedModel:
    """Load the network that `checkpoint` or `weights` name, with its weights.

    Raises InputError unless exactly one of the two is given, and for settings of the network
    that its file already decides.
    """
    if (config.checkpoint is None) == (config.weights is None):
        count = "both were given" if config.weights else "neither was given"
        problem = f"give exactly one of checkpoint=FILE and weights=FILE; {count}"
        raise InputError("checkpoint", config.checkpoint, problem)
    origin = str(config.checkpoint or config.weights)
    if config.checkpoint is None and not is_exported(origin):
        if config.model.name is None:
            problem = "weights= needs model=, the architecture they belong to"
            raise InputError("model", None, problem)
        model = ModelConfig(**asdict(config.model))
        return load_published(origin, model, like=config.weights_like, key=config.weights_key)
    decides = "the checkpoint" if config.checkpoint else "the exported file"
    for entry in fields(config.model):
        value = getattr(config.model, entry.name)
        if value != getattr(EvalModelConfig(), entry.name):
            problem = f"is read from {decides} and cannot be overridden"
            hint = "use weights=FILE to choose the model"
            raise InputError(f"model.{entry.name}", value, f"{problem}; {hint}")
    if config.checkpoint is None:
        return load_exported(origin)
    return load_run(origin, wants_average=config.ema)


def model_from_checkpoint(path: str | Path) -> MobileNet:
    """Return a run's network from its checkpoint, in eval mode."""
    return load_run(str(path)).model


def load_run(path: str, *, wants_average: bool = True) -> LoadedModel:
    """Load a run's checkpoint, with all settings of the run."""
    state = load_checkpoint(path)
    notes = [f"epoch {state['epoch']}"]
    if epochs := state.get("averaged"):
        notes = [f"mean of epochs {', '.join(map(str, epochs))}"]
    if "model_ema" in state:
        notes.append("averaged weights" if wants_average else "weights as trained, not averaged")
        state["model"] = state["model_ema"] if wants_average else state["model"]
    trained = stored_config(state["config"], path)
    try:
        model = config_model(trained.model, state["num_classes"])
    except InputError as error:
        if error.key == "model.name" and trained.run.imports:
            imports = f"run.imports=[{','.join(trained.run.imports)}]"
            raise InputError(
                error.key, error.value, f"its run had {imports}; give it here too"
            ) from None
        raise
    restore_model(model, state, path)
    if "rounding" in state:
        notes.append("int8 (fake-quantised)")
    folder = Path(path).resolve().parent
    return LoadedModel(
        model.eval(),
        trained.model,
        Preprocessing(**{key: getattr(trained.data, key) for key in PREPROCESSING}),
        origin=path,
        digest=weights_identity(path),
        notes=(*notes, *([model.variant.describe()] if hasattr(model, "variant") else [])),
        classes=state["classes"],
        folder=folder.parent if folder.name == "checkpoints" else folder,
        trained_by=trained,
        epoch=state["epoch"],
        fake_quantized=state.get("rounding"),
    )


def load_exported(path: str, *, key: str = "weights") -> LoadedModel:
    """Load an exported file, with all that it says of its network.

    Raises InputError, under `key`, for any other file.
    """
    forward, metadata = read_exported(path, key=key)
    config, preprocessing = settings_of(metadata)
    with torch.device("meta"):
        like = config_model(config, metadata.num_classes)
    return LoadedModel(
        ExportedModel(forward, metadata, like, path),
        config,
        preprocessing,
        origin=path,
        digest=weights_identity(path),
        notes=(f"exported from {metadata.origin}", metadata.form),
        classes=metadata.classes,
        source=metadata.source,
    )


def load_published(
    origin: str, config: ModelConfig, *, like: str | None = None, key: str | None = None
) -> LoadedModel:
    """Load weights of any known layout into the network that `config` describes."""
    weights, model = weights_and_model(origin, config, config.num_classes, like=like, key=key)
    weights.into(model)
    apply_config(model, config)
    return LoadedModel(
        model.eval(),
        ModelConfig(**asdict(config) | {"stem_stride": model.stem_stride}),
        weights.preprocessing,
        origin=origin,
        digest=weights_identity(origin),
        notes=(
            f"layout: {weights.layout.title}",
            *weights.notes,
            describe_variant(model),
        ),
        classes=weights.classes,
        source=weights.source,
    )


def weights_and_model(
    origin: str,
    config: ModelConfig,
    num_classes: int | None,
    *,
    like: str | None = None,
    key: str | None = None,
) -> tuple[Weights, MobileNet]:
    """Read weights, and build a randomly initialised network for them.

    Its stem stride is that of the weights, unless the config gives one; its number of classes
    is that of the weights, where `num_classes` is None.
    """
    model = config_model(config, num_classes or 1000)
    any_stem = config.stem_stride is None
    weights = read_weights(origin, model, like=like, key=key, any_stem=any_stem)
    classes = num_classes or weights.num_classes or 1000
    if (classes, weights.stem_stride) != (model.num_classes, 2):
        model = config_model(config, classes, stem_stride=weights.stem_stride)
    return weights, model
