"""A composed configuration, checked and compared; and the identity of a run.

Only here, in `schema` and in `cli` is OmegaConf known. Nothing here needs torch.
"""

import hashlib
import json
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mobilenet_exp.config.rules import RULES
from mobilenet_exp.config.schema import AnyConfig, Config, DistillConfig
from mobilenet_exp.config.smoke import shrunk
from mobilenet_exp.core.errors import InputError


def to_config(composed: Any, schema: type = Config) -> AnyConfig:
    """Turn a composed DictConfig, or a plain dict of an old run, into a checked Config.

    Raises InputError naming the key, the value and what is allowed.
    """
    composed = OmegaConf.create(composed) if isinstance(composed, dict) else composed
    for key in sorted(OmegaConf.missing_keys(composed)):
        raise InputError(key, "???", f"must be given, as {key}=...")
    # a plain dict, so that the schema refuses what it does not name
    plain = OmegaConf.to_container(composed, resolve=True)
    typed = OmegaConf.merge(OmegaConf.structured(schema), plain)
    for key, (is_allowed, allowed) in RULES.items():
        value = OmegaConf.select(typed, key, default=None)
        if value is not None and not is_allowed(value):
            raise InputError(key, value, allowed)
    config = OmegaConf.to_object(typed)
    if getattr(config, "weights_like", None) and not config.weights:
        raise InputError("weights_like", config.weights_like, "goes with weights=FILE")
    distill = getattr(config, "distill", None)
    if distill and distill.teacher is None and distill != DistillConfig():
        raise InputError("distill.teacher", None, "must be given with any other key of distill")
    return shrunk(config) if isinstance(config, Config) else config


def to_dict(config: AnyConfig) -> dict[str, Any]:
    """Return the config as nested plain dicts, for files, checkpoints and W&B."""
    return asdict(config)


def to_yaml(config: AnyConfig) -> str:
    """Return the config as the YAML that a run keeps."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def run_name(config: Config) -> str:
    """Return the run's folder name and W&B id: readable head, hash of what is learned."""
    text = json.dumps(identity(config), sort_keys=True)
    return f"{run_title(config)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def identity(config: Config) -> dict[str, Any]:
    """Return what is learned, by section: the values that are not the schema's defaults.

    A key that a later version adds thus does not rename the runs made before it. Places
    are left out, and files count by their content.
    """
    found = {}
    for section in fields(config):
        values = getattr(config, section.name)
        if not is_dataclass(values) or section.name == "run":
            continue
        default = section.default_factory()
        found[section.name] = {
            entry.name: getattr(values, entry.name)
            for entry in fields(values)
            if not entry.metadata.get("place")
            and getattr(values, entry.name) != getattr(default, entry.name)
        }
    if not found["distill"]:
        del found["distill"]
    if config.distill.teacher:
        found["distill"]["teacher"] = weights_identity(config.distill.teacher)
    if config.weights:
        found["weights"] = [weights_identity(config.weights), config.weights_like]
    if config.data.name == "imagefolder" and config.data.root:
        # a folder of images has no other name than its own; where it lies does not matter
        found["data"]["folder"] = Path(config.data.root).resolve().name
    return found


def differences(ours: Config, theirs: Config) -> list[str]:
    """Return the learned keys in which two configurations differ, with their values."""
    found = []
    for section in fields(ours):
        values, others = getattr(ours, section.name), getattr(theirs, section.name)
        if section.name == "run" or not is_dataclass(values):
            continue
        for entry in fields(values):
            here, there = getattr(values, entry.name), getattr(others, entry.name)
            # a teacher counts by its content, and is in the run's name
            is_told = entry.name == "teacher" or entry.metadata.get("place")
            if here != there and not is_told:
                found.append(f"{section.name}.{entry.name} is {there} there, {here} here")
    return found


def weights_identity(weights: str) -> str:
    """Return what tells weights apart: a published name, or the hash of a file's content."""
    try:
        return hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    except OSError:
        # no file: a name, or a path that loading will refuse
        return weights


def run_title(config: Config) -> str:
    """Return the readable part of the name: model, width, side, data, optimizer, seed."""
    return (
        f"{config.model.name}-w{config.model.width_mult:g}-r{config.data.resolution}"
        f"-{config.data.name}-{config.optimizer.name}-s{config.train.seed}"
    )
