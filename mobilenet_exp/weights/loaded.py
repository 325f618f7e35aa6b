"""A network with its weights, and how it wants its images.

From a run's checkpoint, or from weights of any known layout.
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
    DistillConfig,
    EvalConfig,
    EvalModelConfig,
    ModelConfig,
    WeightsConfig,
)
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data.preprocessing import Preprocessing
from mobilenet_exp.datasets import imagenet
from mobilenet_exp.models import MobileNet
from mobilenet_exp.models.build import config_model
from mobilenet_exp.models.fake_quantized import FakeQuantized
from mobilenet_exp.models.profiling import Profile, profile_model
from mobilenet_exp.models.variant import apply_variant, describe_variant
from mobilenet_exp.weights.checkpoint import load_checkpoint, restore_model, restore_ranges
from mobilenet_exp.weights.exported import (
    ExportedModel,
    is_exported,
    read_exported,
    settings_of,
)
from mobilenet_exp.weights.loading import Weights, read_weights

PREPROCESSING = tuple(entry.name for entry in fields(Preprocessing))


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode, and what is known about its weights.

    `origin` is the path or name as given, `digest` what tells its content apart;
    `classes` are names by label, None if the weights have none; `source` is the source of
    published weights' rows; `folder` is the folder of the run that trained them, and
    `trained_by` its configuration and `epoch` the epochs completed, None without a run;
    `notes` say where settings are from; `fake_quantized` has the ranges of 8 bits, of a run that
    learned to answer in them.
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
        """Return what answers: the network, rounded as it was when it learned.

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
        """Return whether it answers in 8 bits."""
        if isinstance(self.model, ExportedModel):
            return self.model.record.form.startswith("int8")
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


def apply_config(model: MobileNet, config: ModelConfig) -> None:
    """Let a BN eps or an activation that the config gives win over the weights' own."""
    own = model.variant
    bn_eps = config.bn_eps or own.bn_eps
    activation = config.args.get("activation") or own.activation
    apply_variant(model, replace(own, bn_eps=bn_eps, activation=activation))


def load_model(config: EvalConfig) -> LoadedModel:
    """Load what `checkpoint` or `weights` name, with preprocessing that `data.*` may change.

    Raises InputError unless one of the two is given.
    """
    loaded = load_chosen(config)
    wanted: dict[str, Any] = {key: getattr(config.data, key) for key in PREPROCESSING}
    given: dict[str, Any] = {key: value for key, value in wanted.items() if value is not None}
    return replace(loaded, preprocessing=replace(loaded.preprocessing, **given))


def load_chosen(config: WeightsConfig) -> LoadedModel:
    """Load what `checkpoint` or `weights` name. Raises InputError unless it is one of them."""
    if (config.checkpoint is None) == (config.weights is None):
        count = "both were given" if config.weights else "neither was given"
        problem = f"give exactly one of checkpoint=FILE and weights=FILE; {count}"
        raise InputError("checkpoint", config.checkpoint, problem)
    if config.checkpoint is None:
        return _load_asked(config)
    _refuse_settings(config.model, "the checkpoint")
    return load_run(config.checkpoint, wants_average=config.ema)


def _refuse_settings(model: EvalModelConfig, origin: str) -> None:
    """Refuse settings of what a checkpoint or an exported file settles."""
    default = EvalModelConfig()
    for key in ("name", *(entry.name for entry in fields(model))):
        value = getattr(model, key)
        if value != getattr(default, key):
            problem = f"is read from {origin} and cannot be overridden"
            hint = "use weights=FILE to choose the model"
            raise InputError(f"model.{key}", value, f"{problem}; {hint}")


def _load_asked(config: WeightsConfig) -> LoadedModel:
    if is_exported(str(config.weights)):
        _refuse_settings(config.model, "the exported file")
        return load_exported(str(config.weights))
    if config.model.name is None:
        problem = "weights= needs model=, the architecture they belong to"
        raise InputError("model", None, problem)
    model = ModelConfig(**asdict(config.model))
    return load_published(
        str(config.weights), model, like=config.weights_like, key=config.weights_key
    )


def model_from_checkpoint(path: str | Path) -> MobileNet:
    """Return a run's network from its checkpoint, in eval mode; nothing is asked twice."""
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
            words = f"run.imports=[{','.join(trained.run.imports)}]"
            raise InputError(
                error.key, error.value, f"its run had {words}; give it here too"
            ) from None
        raise
    restore_model(model, state, path)
    if "rounding" in state:
        notes.append("rounded as in 8 bits")
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

    Raises InputError, under `key`, for what is none.
    """
    forward, record = read_exported(path, key=key)
    config, preprocessing = settings_of(record)
    with torch.device("meta"):
        like = config_model(config, record.num_classes)
    return LoadedModel(
        ExportedModel(forward, record, like, path),
        config,
        preprocessing,
        origin=path,
        digest=weights_identity(path),
        notes=(f"exported from {record.origin}", record.form),
        classes=record.classes,
        source=record.source,
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
    """Read weights, and build the network for them with random ones.

    The stem has the stride that the weights were trained with, unless the config says
    otherwise; so has the classifier as many classes, where `num_classes` is None.
    """
    model = config_model(config, num_classes or 1000)
    any_stem = config.stem_stride is None
    weights = read_weights(origin, model, like=like, key=key, any_stem=any_stem)
    classes = num_classes or weights.num_classes or 1000
    if (classes, weights.stem_stride) != (model.num_classes, 2):
        model = config_model(config, classes, stem_stride=weights.stem_stride)
    return weights, model


def load_teacher(teacher: str, distill: DistillConfig) -> LoadedModel:
    """Load the teacher that a run's checkpoint or a weights file holds."""
    if distill.model is not None:
        model = ModelConfig(name=distill.model, width_mult=distill.width_mult)
        try:
            return load_published(teacher, model)
        except InputError as error:
            problem = error.problem.partition("; choose one, as weights_key")[0]
            raise InputError("distill.teacher", teacher, problem) from error
    if not Path(teacher).is_file():
        problem = "no such file; for torchvision's weights give distill.model, for timm's timm:..."
        raise InputError("distill.teacher", teacher, problem)
    return load_run(teacher)


def check_classes(loaded: LoadedModel, key: str, value: object, classes: list[str]) -> None:
    """Raise InputError, under `key`, if images have other classes than the network learned."""
    if loaded.classes is not None and classes != loaded.classes:
        raise InputError(key, value, "has other classes than the checkpoint was trained on")
    if loaded.classes is None and len(classes) != loaded.num_classes:
        problem = f"has {len(classes)} classes, the weights have {loaded.num_classes}"
        raise InputError(key, value, problem)
