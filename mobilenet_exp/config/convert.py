"""From a composed configuration to a checked one, and back to plain dicts and YAML.

Only here and in `cli` is OmegaConf known.
"""

from dataclasses import asdict
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mobilenet_exp.config.rules import checked, resolved
from mobilenet_exp.config.schema import AnyConfig, Config
from mobilenet_exp.core.errors import InputError, first_line


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
