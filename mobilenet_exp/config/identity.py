"""Which run a configuration is: its name, and how it differs from another one."""

import hashlib
import json
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from mobilenet_exp.config.schema import ALWAYS, NOT_IDENTITY, Config

# Values that do not enter the name although they are not the schema's default: a stem
# stride of 2 was the default before null was allowed.
ALSO_DEFAULT = {("model", "stem_stride"): 2}


def run_name(config: Config) -> str:
    """Return the run's folder name and W&B id: a readable head, and a hash of the identity."""
    text = json.dumps(identity(config), sort_keys=True)
    return f"{run_title(config)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def run_title(config: Config) -> str:
    """Return the readable part of the name: model, width, side, data, optimizer, seed."""
    return (
        f"{config.model.title}-w{config.model.width_mult:g}-r{config.data.resolution}"
        f"-{config.data.name}-{config.optimizer.name}-s{config.train.seed}"
    )


# keys that the title shows already
IN_TITLE = {
    "model", "model.name", "model.width_mult", "data", "data.name", "data.resolution",
    "optimizer", "optimizer.name", "train.seed",
}  # fmt: skip


def run_label(config: Config, overrides: tuple[str, ...] | list[str]) -> str:
    """Return the title with what else the command varies, as `... lr=0.1`: a name for people."""
    learned = [each.lstrip("+") for each in learned_overrides(overrides)]
    varied = [each for each in learned if each.partition("=")[0] not in IN_TITLE]
    return " ".join([run_title(config), *(without_section(override) for override in varied)])


def without_section(override: str) -> str:
    """Return an override without its section: `optimizer.lr=0.1` reads `lr=0.1`."""
    key, equals, value = override.partition("=")
    return f"{key.rpartition('.')[2]}{equals}{value}"


def identity(config: Config) -> dict[str, Any]:
    """Return what is learned, by section: the values that are not the schema's defaults.

    A key that a later version adds therefore does not rename the runs made before it.
    Where things are is left out, and files count by their content.
    """
    named: dict[str, Any] = {}
    for section in fields(config):
        values = getattr(config, section.name)
        if not is_dataclass(values) or section.name == "run":
            continue
        changed: dict[str, Any] = {}
        for entry in fields(values):
            value, default = getattr(values, entry.name), entry.default
            if entry.default_factory is not MISSING:
                default = entry.default_factory()
            differs = value not in (default, ALSO_DEFAULT.get((section.name, entry.name), MISSING))
            if entry.name == "int8_weights":
                # 8 is what was learned before there was a choice
                differs = config.train.quantise is not None and value != 8
            if NOT_IDENTITY not in entry.metadata and (differs or ALWAYS in entry.metadata):
                changed[entry.name] = value
        named[section.name] = changed
    if not named["distill"]:
        del named["distill"]
    if config.distill.teacher:
        named["distill"]["teacher"] = weights_identity(config.distill.teacher)
    if config.weights:
        named["weights"] = [weights_identity(config.weights), config.weights_like]
        named["weights"] += [config.weights_key] if config.weights_key else []
    if config.data.name == "imagefolder" and config.data.root:
        # a folder of images has no other name than its own; where it lies does not matter
        named["data"]["folder"] = Path(config.data.root).resolve().name
    return named


def differences(ours: Config, theirs: Config) -> list[str]:
    """Return the learned keys in which two configurations differ, with their values."""
    differing = []
    for section in fields(ours):
        values, others = getattr(ours, section.name), getattr(theirs, section.name)
        if section.name == "run" or not is_dataclass(values):
            continue
        for entry in fields(values):
            now, then = getattr(values, entry.name), getattr(others, entry.name)
            # a teacher counts by its content, which is in the run's name
            is_elsewhere = entry.name == "teacher" or NOT_IDENTITY in entry.metadata
            # null until the weights that the run starts from are read
            is_open = entry.name == "stem_stride" and None in (now, then)
            if now != then and not is_elsewhere and not is_open:
                differing.append(f"{section.name}.{entry.name} was {then}, is now {now}")
    return differing


def weights_identity(weights: str) -> str:
    """Return what tells weights apart: a published name, or the hash of a file's content."""
    try:
        return hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    except OSError:
        # no file: a name, or a path that loading will refuse
        return weights


def learned_overrides(overrides: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """Return the overrides that say what is learned, not where or how the run runs."""
    not_learned = {
        f"{section.name}.{entry.name}"
        for section in fields(Config)
        if is_dataclass(section.type)
        for entry in fields(section.type)
        if NOT_IDENTITY in entry.metadata or section.name == "run"
    }
    return tuple(
        override
        for override in overrides
        if (key := override.lstrip("+~").partition("=")[0]) not in not_learned
        and not key.startswith("hydra")
    )
