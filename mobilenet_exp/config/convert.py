"""From a composed configuration to a checked one, and back to plain dicts and YAML.

Only here and in `cli` is OmegaConf known.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mobilenet_exp.config.schema import PATH, AnyConfig, Config, DistillConfig
from mobilenet_exp.core.errors import InputError, first_line

# below this side, five halvings leave a grid of a single pixel
SMALLEST_HALVED_SIDE = 64
# pixels of the noise images of run.smoke
SMOKE_SIDE = 64


def to_config(composed: Any, schema: type = Config) -> AnyConfig:
    """Turn a composed DictConfig, or a plain dict of an old run, into a checked Config.

    Raises InputError naming the key, the value and what is allowed.
    """
    composed = OmegaConf.create(composed) if isinstance(composed, dict) else composed
    for key in sorted(OmegaConf.missing_keys(composed)):
        raise InputError(key, "???", f"must be given, as {key}=...")
    # a plain dict, so that the schema refuses what it does not name
    plain = OmegaConf.to_container(composed, resolve=True)
    if schema is Config and isinstance(plain, dict):
        # of a run of an earlier version: images were read by threads, weights had 8 bits
        plain.get("run", {}).pop("loader", None)
        if plain.get("train", {}).get("quantise"):
            plain["train"].setdefault("int8_weights", 8)
    typed = OmegaConf.merge(OmegaConf.structured(schema), plain)
    for key in sorted(OmegaConf.missing_keys(typed)):
        raise InputError(key, "???", f"must be given, as {key}=...")
    return resolved(checked(OmegaConf.to_object(typed)))


def checked(section: Any, prefix: str = "") -> Any:
    """Return a section with `~` in its paths replaced by the home folder, as a shell would.

    Raises InputError for the first value that is out of its key's range; keys begin with `prefix`.
    """
    changed: dict[str, Any] = {}
    for entry in fields(section):
        key, value = f"{prefix}{entry.name}", getattr(section, entry.name)
        if is_dataclass(value):
            changed[entry.name] = checked(value, f"{key}.")
            continue
        if "range" in entry.metadata:
            entry.metadata["range"].check(key, value)
        if PATH in entry.metadata and isinstance(value, str) and value[:1] == "~":
            changed[entry.name] = os.path.expanduser(value)
    return replace(section, **changed)


def resolved(config: AnyConfig) -> AnyConfig:
    """Return a config with what its other keys decide: EXIF, the stem's stride, `run.smoke`.

    Raises InputError for keys of `train.py` that exclude each other.
    """
    data = getattr(config, "data", None)
    # else a checkpoint names its data
    if data is not None and data.name is not None:
        config = replace(config, data=replace(data, exif=resolved_exif(data)))
    if not isinstance(config, Config):
        return config
    distill, run = config.distill, config.run
    if distill.teacher is None and distill != DistillConfig():
        raise InputError("distill.teacher", None, "required when another distill.* key is set")
    if config.train.quantise and run.compile:
        raise InputError("run.compile", True, "does not work with train.quantise, which uses hooks")
    if config.train.quantise and run.precision in ("bfloat16", "float16"):
        raise InputError("run.precision", run.precision, "train.quantise needs float32")
    if run.smoke:
        config = shrunk(config)
    # weights keep the stride that they were trained with
    if config.model.stem_stride is None and not config.weights:
        stride = 1 if config.data.resolution < SMALLEST_HALVED_SIDE else 2
        config = replace(config, model=replace(config.model, stem_stride=stride))
    return config


def shrunk(config: Config) -> Config:
    """Return a config cut down to seconds on noise, all its parts in use.

    Weights to start from are left out where their file does not exist.
    """
    data, train = config.data, config.train
    # what a batch is cut into, and mixup's pairs
    parts = 2 * train.accumulate * config.run.devices
    batch_size = max(8 // parts, 1) * parts
    has_weights = config.weights is not None and Path(config.weights).is_file()
    return replace(
        config,
        data=replace(
            data,
            name="fake",
            root=None,
            labels=None,
            val_share=None,
            batch_size=batch_size,
            resolution=SMOKE_SIDE,
            train_resolution=data.train_resolution and SMOKE_SIDE // 2,
            progressive_from=data.progressive_from and SMOKE_SIDE // 2,
            mix_off_epochs=min(data.mix_off_epochs, 1),
            args={"num_images": 4 * parts + 8, "num_classes": 10},
        ),
        # smaller batches take smaller steps, as large ones take larger
        optimizer=replace(
            config.optimizer,
            lr=config.optimizer.lr * min(batch_size / data.batch_size, 1.0),
        ),
        schedule=replace(
            config.schedule,
            warmup_epochs=min(config.schedule.warmup_epochs, 0.5),
            cooldown_epochs=min(config.schedule.cooldown_epochs, 0.5),
        ),
        train=replace(train, epochs=2, precise_bn_batches=min(train.precise_bn_batches, 1)),
        weights=config.weights if has_weights else None,
        weights_like=None,
        weights_key=None,
        run=replace(config.run, workers=0),
    )


def resolved_exif(data: Any) -> Any:
    """Return apply or ignore for auto: published rows took ImageNet's photos as stored."""
    return ("ignore" if data.is_imagenet else "apply") if data.exif == "auto" else data.exif


def check_effects(config: Any, overrides: Iterable[str], varied: Iterable[str] = ()) -> None:
    """Raise InputError for a word of a command that has no effect, with what it needs.

    `varied` are the keys that a sweep varies. Overrides are for all its jobs: one that needs
    such a key has an effect in some of them.
    """
    if isinstance(config, Config) and config.run.smoke:
        # a recipe that is checked on noise
        return
    split = [each.partition("=") for each in overrides]
    given = {key.lstrip("+~"): value for key, _, value in split}
    for key in given:
        section, _, name = key.rpartition(".")
        part = getattr(config, section, None) if section else config
        if not is_dataclass(part):
            continue
        entry = next((each for each in fields(part) if each.name == name), None)
        need = entry.metadata.get("need") if entry else None
        if entry is None or need is None or need.is_met(config):
            continue
        value = getattr(part, name)
        is_met_elsewhere = any(
            re.search(rf"\b{re.escape(other)}\b", need.what) for other in varied if other != key
        )
        if value != entry.default and not is_met_elsewhere:
            raise InputError(key, given[key], f"has no effect here; it needs {need.what}")


def to_part(plain: dict[str, Any], schema: type, key: str) -> Any:
    """Turn a mapping into a checked section of a configuration, whose keys begin with `key`."""
    try:
        section = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))
    except OmegaConfBaseException as error:
        name = str(error.full_key or "")
        problem = first_line(error)
        raise InputError(f"{key}.{name}", plain.get(name), f"is not allowed: {problem}") from error
    return checked(section, f"{key}.")


def to_train_config(composed: Any) -> Config:
    """Do the same for a configuration of `train.py`, as checkpoints keep it."""
    config = to_config(composed, Config)
    assert isinstance(config, Config)
    return config


def stored_config(composed: Any, path: object) -> Config:
    """Do the same for what the checkpoint `path` holds. Raises InputError if it cannot be used."""
    try:
        return to_train_config(composed)
    except OmegaConfBaseException as error:
        problem = f"holds a configuration of another version: {first_line(error)}"
        raise InputError("checkpoint", path, problem) from error


def to_yaml(config: AnyConfig) -> str:
    """Return the config as the YAML that a run keeps."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def read_config(text: str) -> Config:
    """Read the YAML that a run keeps. Raises ValueError if it is not a whole configuration."""
    try:
        return to_train_config(OmegaConf.create(text))
    except Exception as error:
        # YAML's, OmegaConf's and our own errors
        raise ValueError(first_line(error)) from error
