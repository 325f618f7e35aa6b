"""What a configuration as a whole must satisfy: ranges, and keys that need each other."""

import os
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from mobilenet_exp.config.schema import AnyConfig, Config, DistillConfig
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.ranges import RANGES, check_range

# below this side, five halvings leave a grid of a single pixel
SMALLEST_HALVED_SIDE = 64


def check(config: AnyConfig) -> None:
    """Raise InputError naming the first key whose value is not allowed."""
    check_section(config, "")
    if isinstance(config, Config):
        distill = config.distill
        if distill.teacher is None and distill != DistillConfig():
            raise InputError("distill.teacher", None, "required when another distill.* key is set")
        if config.train.quantise:
            _check_quantised(config)


def check_effects(config: Any, words: Iterable[str], varied: Iterable[str] = ()) -> None:
    """Raise InputError for a word of a command that has no effect, with what it needs.

    `varied` are the keys that a sweep varies, whose words are for all its jobs: one that needs
    such a key has an effect in some of them.
    """
    if isinstance(config, Config) and config.run.smoke:
        # a recipe that is checked on noise
        return
    given = {key.lstrip("+~"): value for key, _, value in (w.partition("=") for w in words)}
    for key in given:
        section, _, name = key.rpartition(".")
        part = getattr(config, section, None) if section else config
        if not is_dataclass(part):
            continue
        entry = next((each for each in fields(part) if each.name == name), None)
        need = entry.metadata.get("needs") if entry else None
        if entry is None or need is None or need.is_met(config):
            continue
        value = getattr(part, name)
        is_met_elsewhere = any(
            re.search(rf"\b{re.escape(other)}\b", need.words) for other in varied if other != key
        )
        if value != entry.default and not is_met_elsewhere:
            raise InputError(key, given[key], f"has no effect here; it needs {need.words}")


def _check_quantised(config: Config) -> None:
    """Refuse what does not go together with rounding to 8 bits."""
    run = config.run
    if run.compile:
        raise InputError("run.compile", True, "is not for train.quantise, which rounds by hooks")
    if run.precision in ("bfloat16", "float16"):
        raise InputError("run.precision", run.precision, "train.quantise rounds float32 alone")


def check_section(section: Any, prefix: str) -> None:
    """Raise InputError for the first value of a section that is out of its key's range."""
    for entry in fields(section):
        key, value = f"{prefix}{entry.name}", getattr(section, entry.name)
        if is_dataclass(value):
            check_section(value, f"{key}.")
        elif key in RANGES:
            check_range(key, value)


def with_home(section: Any) -> Any:
    """Return the config with `~` in paths replaced by the home folder, as a shell would."""
    changed: dict[str, Any] = {}
    for entry in fields(section):
        value = getattr(section, entry.name)
        if is_dataclass(value):
            changed[entry.name] = with_home(value)
        elif entry.metadata.get("path") and isinstance(value, str) and value[:1] == "~":
            changed[entry.name] = os.path.expanduser(value)
    return replace(section, **changed)


def with_exif(config: AnyConfig) -> AnyConfig:
    """Return the config with `data.exif=auto` settled, unless a checkpoint names its data."""
    data = getattr(config, "data", None)
    if data is None or data.name is None:
        return config
    return replace(config, data=replace(data, exif=resolved_exif(data)))


def resolved_exif(data: Any) -> Any:
    """Return apply or ignore for auto: published rows took ImageNet's photos as stored."""
    return ("ignore" if data.is_imagenet else "apply") if data.exif == "auto" else data.exif


def with_stem_stride(config: Config) -> Config:
    """Return the config with `model.stem_stride` settled, unless weights will settle it."""
    if config.model.stem_stride is not None or config.weights:
        return config
    stride = 1 if config.data.resolution < SMALLEST_HALVED_SIDE else 2
    return replace(config, model=replace(config.model, stem_stride=stride))
