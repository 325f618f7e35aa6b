"""Reads weight files of any kind, without running code from them."""

import argparse
import collections
import datetime
import hashlib
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from mobilenet_exp.core.errors import InputError, first_line

# Averaged weights first, as timm's reader: they are what a training's accuracy is of.
PREFERRED = ("state_dict_ema", "model_ema", "state_dict", "model")
# parts of a name that a wrapper around a network, or around a part of it, adds
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# what torch's AveragedModel and profilers (thop) count beside the weights
COUNTERS = ("n_averaged", "total_ops", "total_params")
# how deep a state dict may lie in other dicts
MAX_DEPTH = 3


@dataclass(frozen=True)
class WeightFile:
    """A file's tensors without wrappers.

    `extras` are the file's other entries; `notes` say which wrappers were removed; `prefix` is
    the rest of the requested key, a prefix of the names; `sha256` is that of the whole file.
    """

    tensors: dict[str, Tensor]
    sha256: str
    extras: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    prefix: str = ""
    # where the state dict lay in the file
    name: str = ""


def read_file(path: str | Path, *, key: str | None = None) -> WeightFile:
    """Read `.pth`, `.pt`, `.tar`, `.bin` or `.safetensors`, recognised by content, to the CPU.

    Finds the tensors in nested dicts of any name, and removes `module.` and other prefixes of
    wrappers from their names. Where a file holds several state dicts, `key` names the one to
    take; without it averaged weights come first. Raises InputError for a file that is
    missing, damaged, without tensors, or that would run code.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError("weights", path, f"cannot be read: {error.strerror}") from error
    if not content:
        raise InputError("weights", path, "the file is empty")
    # safetensors: the length of a JSON header in 8 bytes, then the header
    is_safetensors = content[8:9] == b"{"
    loaded = _read_safetensors(content, path) if is_safetensors else _read_pickle(path)
    if not isinstance(loaded, dict):
        raise InputError("weights", path, f"holds a {type(loaded).__name__}, not a state dict")
    name, found, prefix, notes = _choose(loaded, path, key)
    extras = {each: value for each, value in loaded.items() if each != name.partition(".")[0]}
    tensors, removed = _without_wrappers(found)
    return WeightFile(
        tensors,
        hashlib.sha256(content).hexdigest(),
        extras if name else {},
        (*notes, *removed),
        prefix,
        name,
    )


def _read_safetensors(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except Exception as error:
        # a damaged header fails in any way
        problem = f"is a damaged safetensors file: {first_line(error)}"
        raise InputError("weights", path, problem) from error


def _plain_dict(*_: Any) -> dict:
    """Stand for a defaultdict, which torch would not fill."""
    return {}


def _path_text(*parts: str) -> str:
    """Stand for a path, which may be of another system."""
    return "/".join(parts)


def _plain_values() -> list[Any]:
    """Return what may stand beside the tensors of a file: values, which run nothing."""
    paths = [
        f"pathlib.{module}{kind}Path"
        for module in ("", "_local.")
        for kind in ("", "Pure", "Posix", "PurePosix", "Windows", "PureWindows")
    ]
    dicts = [
        f"{module}.AttributeDict"
        for module in (
            "lightning_fabric.utilities.data",
            "lightning.fabric.utilities.data",
            "pytorch_lightning.utilities.parsing",
        )
    ]
    multiarray = import_module("numpy._core.multiarray")
    numpy_functions: list[tuple[Callable, str]] = [
        (getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ]
    return [
        argparse.Namespace,
        *(datetime.datetime, datetime.date, datetime.timedelta),
        *(bool, int, float, str, list, dict, tuple, frozenset, collections.deque),
        *((_plain_dict, "collections.defaultdict"), (str, "torch.torch_version.TorchVersion")),
        *((_path_text, path) for path in paths),
        *((dict, name) for name in dicts),
        *(np.ndarray, np.dtype, *numpy_functions),
        *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
    ]


def _load_safely(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnicodeDecodeError:
        # Python 2's strings are bytes, which latin1 always decodes; torch warns that it
        # ignores the encoding, and does not
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, encoding="latin1")


def _read_pickle(path: Path) -> Any:
    with torch.serialization.safe_globals(_plain_values()):
        try:
            return _load_safely(path)
        except pickle.UnpicklingError as error:
            raise InputError("weights", path, _refusal(str(error))) from error
        except Exception as error:
            # a damaged pickle fails in any way
            reason = first_line(error)
            problem = f"not a weight file, or damaged: {reason}"
            if "TorchScript" in reason:
                problem = (
                    "is a TorchScript archive; save its weights with "
                    "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
                )
            raise InputError("weights", path, problem) from error


def _refusal(reason: str) -> str:
    asked = re.search(r"GLOBAL (\S+)", reason)
    if asked is None:
        return "not a weight file, or damaged: not a pickle of tensors"
    return (
        f"refused: it would run {asked[1]}; only tensors and plain values load. Where that code "
        "is installed, torch.save(net.state_dict(), NEW_FILE) writes one"
    )


def _choose(
    loaded: dict, path: Path, key: str | None
) -> tuple[str, dict[str, Tensor], str, list[str]]:
    """Return name and tensors of a file's state dict, the rest of `key`, and notes."""
    found = dict(_state_dicts(loaded)) or dict(_state_dicts(loaded, is_loose=True))
    if not found:
        keys = ", ".join(map(str, list(loaded)[:5])) or "none"
        raise InputError("weights", path, f"holds no tensors; its keys: {keys}")
    names = sorted(found, key=_rank)
    if key is not None:
        name = next((each for each in names if f"{key}.".startswith(f"{each}." * bool(each))), None)
        if name is None:
            problem = f"{path} has no such part; it has {', '.join(names)}"
            raise InputError("weights_key", key, problem)
        return name, found[name], key.removeprefix(name).lstrip("."), [f"taken from {key}"]
    if len(names) > 1 and _rank(names[0]) == len(PREFERRED):
        problem = f"holds {' and '.join(names)}; choose one, as weights_key={names[0]}"
        raise InputError("weights", path, problem)
    name, *others = names
    over = f", not {' or '.join(others)} (weights_key=NAME chooses)" if others else ""
    return name, found[name], "", [f"taken from {name}{over}"] if name else []


def _rank(name: str) -> int:
    first = name.partition(".")[0]
    return PREFERRED.index(first) if first in PREFERRED else len(PREFERRED)


def _state_dicts(
    loaded: dict, name: str = "", depth: int = 0, *, is_loose: bool = False
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield names, joined by dots, and tensors of the state dicts in a file.

    A state dict has dots in its names, unlike an optimizer's; `is_loose` takes any names.
    """
    tensors = {
        key: value
        for key, value in loaded.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if any(is_loose or "." in key for key in tensors):
        yield name, tensors
    elif depth < MAX_DEPTH:
        for key, value in loaded.items():
            if isinstance(key, str) and isinstance(value, dict):
                inner = f"{name}.{key}" if name else key
                yield from _state_dicts(value, inner, depth + 1, is_loose=is_loose)


def _without_wrappers(found: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Take wrappers' parts out of the names, and counters out of the tensors."""
    tensors: dict[str, Tensor] = {}
    removed: dict[str, None] = {}
    for key, value in found.items():
        parts = key.split(".")
        if parts[-1] in COUNTERS:
            continue
        removed |= dict.fromkeys(part for part in parts if part in WRAPPERS)
        name = ".".join(part for part in parts if part not in WRAPPERS)
        # two that become one: these are no wrappers
        if name in tensors:
            return dict(found), []
        tensors[name] = value
    return tensors, [f"prefix {part}. removed" for part in removed]
