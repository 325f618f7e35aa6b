"""Reads weight files of any kind, without running code from them."""

import argparse
import hashlib
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from mobilenet_exp.core.errors import InputError

# Averaged weights first, as timm's reader: they are what a training's accuracy is of.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class WeightFile:
    """A file's tensors without wrapper and prefixes.

    `extras` is what stood beside them; `notes` say what was taken off; `sha256` is of
    the whole file.
    """

    tensors: dict[str, Tensor]
    sha256: str
    extras: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_file(path: str | Path) -> WeightFile:
    """Read `.pth`, `.pt`, `.tar`, `.bin` or `.safetensors`, told apart by content, to the CPU.

    Takes the tensors out of `state_dict_ema`, `model_ema`, `state_dict` or `model` where
    the file has one of these, and `module.` and `_orig_mod.` off their names. Raises
    InputError for a file that is missing, damaged, without tensors, or that asks to run
    code.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError("weights", path, f"cannot be read: {error.strerror}") from error
    # safetensors: the length of a JSON header in 8 bytes, then the header
    if not content:
        raise InputError("weights", path, "the file is empty")
    is_safetensors = content[8:9] == b"{"
    loaded = _read_safetensors(content, path) if is_safetensors else _read_pickle(path)
    tensors, extras, notes = _unwrap(loaded, path)
    while prefix := _common_prefix(tensors):
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
        notes.append(f"prefix {prefix} removed")
    return WeightFile(tensors, hashlib.sha256(content).hexdigest(), extras, tuple(notes))


def _read_safetensors(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError("weights", path, f"is a damaged safetensors file: {error}") from error


def _read_pickle(path: Path) -> Any:
    # trainers keep their arguments in a Namespace, which holds values and runs nothing
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            asked = re.search(r"GLOBAL (\S+)", str(error))
            if asked is None:
                problem = "not a weight file, or damaged: not a pickle of tensors"
            else:
                problem = f"refused: it would run {asked[1]}; only tensors and plain types load"
            raise InputError("weights", path, problem) from error
        except Exception as error:
            # a damaged pickle fails in any way
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError("weights", path, f"not a weight file, or damaged: {reason}") from error


def _unwrap(loaded: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    if not isinstance(loaded, dict):
        raise InputError("weights", path, f"holds a {type(loaded).__name__}, not a state dict")
    notes = []
    extras: dict[str, Any] = {}
    for wrapper in WRAPPERS:
        if isinstance(loaded.get(wrapper), dict):
            extras = {key: value for key, value in loaded.items() if key != wrapper}
            others = [name for name in WRAPPERS if isinstance(extras.get(name), dict)]
            over = f", not {' or '.join(others)}" if others else ""
            loaded, notes = loaded[wrapper], [f"taken from {wrapper}{over}"]
            break
    tensors = {
        key: value
        for key, value in loaded.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    # the counter of torch's AveragedModel
    tensors.pop("n_averaged", None)
    if not tensors:
        keys = ", ".join(map(str, list(loaded)[:5])) or "none"
        raise InputError("weights", path, f"holds no tensors; its keys: {keys}")
    return tensors, extras, notes


def _common_prefix(tensors: dict[str, Tensor]) -> str | None:
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            return prefix
    return None
