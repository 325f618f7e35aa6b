"""Checkpoints: one dict of tensors and plain types, written whole or not at all."""

import contextlib
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from mobilenet_exp.core.errors import InputError, RunError
from mobilenet_exp.models import MobileNet
from mobilenet_exp.models.fake_quantized import FakeQuantized
from mobilenet_exp.models.variant import Variant, apply_variant

FORMAT = 1


def save_checkpoint(
    path: Path, state: dict[str, Any], *, previous: Path | None = None, also: tuple[Path, ...] = ()
) -> None:
    """Write `state` to a file beside `path` first, then rename it to `path`.

    The file that was at `path` becomes `previous`, if that is given. At every moment one of
    the two is complete. `also` are hard links to the same file, or copies where the file
    system has no hard links. Raises RunError if it cannot be written; each of these files is
    then unchanged or complete.
    """
    partial = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # a leftover may be a hard link to the best checkpoint, which must not be overwritten
        partial.unlink(missing_ok=True)
        with partial.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        for name in also:
            _name_also(partial, name)
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(partial, path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch wraps what the system says in errors of its own
        reason = getattr(error, "strerror", None) or _first_cause(error)
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise RunError(f"{path} could not be written: {reason}") from error


def _name_also(path: Path, also: Path) -> None:
    """Hard-link a file to a second name in the same folder, or copy it; replace what is there."""
    new = also.with_suffix(".tmp")
    try:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        try:
            os.link(path, new)
        except OSError:
            shutil.copyfile(path, new)
            _flush(new)
        os.replace(new, also)
    finally:
        new.unlink(missing_ok=True)


def _first_cause(error: BaseException) -> str:
    while cause := error.__cause__ or error.__context__:
        error = cause
    return getattr(error, "strerror", None) or (str(error).splitlines() or ["?"])[0]


def _flush_folder(folder: Path) -> None:
    """Flush a folder, where that is possible, so that a rename survives a power cut."""
    with contextlib.suppress(OSError):
        _flush(folder)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_latest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Read `last.pt` of a folder, or `previous.pt` if that is damaged or not there.

    Returns None for a folder without either, and lines for a person about what was
    damaged; that file is renamed to `last.pt.damaged`. Raises InputError if none can be read.
    """
    last, previous = folder / "last.pt", folder / "previous.pt"
    if not last.exists() and not previous.exists():
        return None, []
    if last.exists():
        try:
            return load_checkpoint(last), []
        except InputError as error:
            if not previous.exists():
                raise
            state = load_checkpoint(previous)
            os.replace(last, folder / "last.pt.damaged")
            return state, [f"{error}; renamed to last.pt.damaged, resuming from previous.pt"]
    return load_checkpoint(previous), [f"{last} is missing; resuming from previous.pt"]


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of `save_checkpoint` onto the CPU; runs no code from the file.

    Raises InputError for a file that is missing, unreadable or not a checkpoint.
    """
    if Path(path).is_dir():
        folder = Path(path) if Path(path).name == "checkpoints" else Path(path) / "checkpoints"
        hint = folder / "best.pt"
        raise InputError("checkpoint", path, f"is a folder; did you mean {hint}?")
    if not Path(path).is_file():
        raise InputError(
            "checkpoint", path, "no such file; runs keep theirs in runs/NAME/checkpoints/"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        problem = "refused: it holds more than tensors and plain types, or is not a checkpoint"
        raise InputError("checkpoint", path, problem) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        problem = "cannot be read: damaged, or not a checkpoint"
        raise InputError("checkpoint", path, problem) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or "model" not in state:
        raise InputError("checkpoint", path, f"not a checkpoint of train.py, format {FORMAT}")
    return state


def restore_ranges(fake_quantized: FakeQuantized, state: dict[str, Any], path: str | Path) -> None:
    """Load the int8 ranges of a checkpoint's network, all and no others."""
    try:
        fake_quantized.ranges.load_state_dict(state["rounding"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        problem = f"its int8 ranges do not fit its model: {reason}"
        raise InputError("checkpoint", path, problem) from error


def restore_model(model: MobileNet, state: dict[str, Any], path: str | Path) -> None:
    """Load a checkpoint's weights into `model`, all of them and no others, with their variant."""
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError("checkpoint", path, f"does not fit its own model: {reason}") from error
    if "dialect" in state:
        apply_variant(model, Variant(**state["dialect"]))
