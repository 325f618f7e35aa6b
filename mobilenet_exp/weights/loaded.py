"""What an evaluation is of: a network with its weights, and how it wants its images.

From a run's checkpoint, or from weights of any known layout.
"""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mobilenet_exp.config.convert import to_config, weights_identity
from mobilenet_exp.config.schema import DataConfig, EvalConfig, ModelConfig
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data import imagenet
from mobilenet_exp.data.preprocessing import Preprocessing
from mobilenet_exp.models import MobileNet
from mobilenet_exp.models.dialect import dialect_of
from mobilenet_exp.weights.checkpoint import load_checkpoint, restore_model
from mobilenet_exp.weights.loading import read_weights
from mobilenet_exp.weights.networks import adopt_asked, config_model

PREPROCESSING = tuple(entry.name for entry in fields(Preprocessing))
# what only this program's data section has
EVAL_ONLY = ("on_bad_image", "real_labels")


@dataclass(frozen=True)
class Subject:
    """`origin` is the path or name as given, `digest` what tells its content; `classes`
    are names by label, None if the weights have none; `folder` is a run's, None without
    a run; `data` the run's own data; `notes` say in words where the settings are from."""

    model: MobileNet
    config: ModelConfig
    preprocessing: Preprocessing
    origin: str
    digest: str
    notes: tuple[str, ...]
    classes: list[str] | None = None
    source: str | None = None
    folder: Path | None = None
    data: DataConfig | None = None

    @property
    def num_classes(self) -> int:
        return self.model.classifier.out_features

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


def load_subject(config: EvalConfig, overrides: tuple[str, ...] = ()) -> Subject:
    """Load what `checkpoint` or `weights` name. Raises InputError unless it is one of them."""
    if (config.checkpoint is None) == (config.weights is None):
        given = "both are given" if config.weights else "none is given"
        raise InputError("checkpoint", config.checkpoint, f"or weights=...: {given}, needs one")
    if config.checkpoint is None:
        subject = _from_weights(config)
    else:
        for word in (word.lstrip("+~") for word in overrides):
            if word.startswith(("model=", "model.", "weights_like=")):
                key, _, value = word.partition("=")
                raise InputError(key, value, "comes with the checkpoint; weights=... takes it")
        subject = _from_checkpoint(config.checkpoint, wants_average=config.ema)
    given = {
        key: value for key in PREPROCESSING if (value := getattr(config.data, key)) is not None
    }
    return replace(subject, preprocessing=replace(subject.preprocessing, **given))


def model_from_checkpoint(path: str | Path) -> MobileNet:
    """Return a run's network from its checkpoint, in eval mode; nothing is asked twice."""
    return _from_checkpoint(str(path)).model


def _from_checkpoint(path: str, *, wants_average: bool = True) -> Subject:
    state = load_checkpoint(path)
    notes = [f"epoch {state['epoch']}"]
    if "model_ema" in state:
        notes.append("averaged weights" if wants_average else "weights as trained, not averaged")
        state["model"] = state["model_ema"] if wants_average else state["model"]
    trained = to_config(state["config"])
    model = config_model(trained, state["num_classes"])
    restore_model(model, state, path)
    folder = Path(path).resolve().parent
    return Subject(
        model.eval(),
        trained.model,
        Preprocessing(**{key: getattr(trained.data, key) for key in PREPROCESSING}),
        origin=path,
        digest=weights_identity(path),
        notes=(*notes, dialect_of(model).words()),
        classes=state["classes"],
        folder=folder.parent if folder.name == "checkpoints" else folder,
        data=trained.data,
    )


def _from_weights(config: EvalConfig) -> Subject:
    if config.model.name is None:
        raise InputError("model", None, "must be given: the net that the weights are of")
    model = config_model(config, config.model.num_classes or 1000)
    weights = read_weights(config.weights, model, like=config.weights_like)
    if config.model.num_classes is None and weights.num_classes:
        model = config_model(config, weights.num_classes)
    weights.into(model)
    adopt_asked(model, config)
    return Subject(
        model.eval(),
        ModelConfig(**asdict(config.model)),
        weights.preprocessing,
        origin=config.weights,
        digest=weights_identity(config.weights),
        notes=(f"layout: {weights.layout.title}", *weights.notes, dialect_of(model).words()),
        classes=weights.classes,
        source=weights.source,
    )


def eval_data(config: EvalConfig, subject: Subject) -> DataConfig:
    """Return the data to score on: the named set, or the run's own, prepared for the net."""
    given: dict[str, Any] = {
        key: value for key, value in asdict(config.data).items() if key not in EVAL_ONLY
    }
    if config.data.name is None:
        if subject.data is None:
            raise InputError("data", None, "must be given, e.g. data=imagenet, or image=PHOTO")
        if config.data.augment is not None:
            raise InputError("data.augment", config.data.augment, "is for training")
        places = ("root", "batch_size", "labels", "download", "args")
        given = asdict(subject.data) | {key: given[key] for key in places if given[key]}
    return DataConfig(**given | asdict(subject.preprocessing))


def check_classes(subject: Subject, data: DataConfig, classes: list[str]) -> None:
    """Raise InputError if the images have other classes than the network learned."""
    if subject.classes is not None:
        if classes != subject.classes:
            allowed = "holds other classes than the checkpoint learned"
            raise InputError("data.root", data.root, allowed)
    elif len(classes) != subject.num_classes:
        allowed = f"has {len(classes)} classes, the weights {subject.num_classes}"
        raise InputError("data", data.name, allowed)
