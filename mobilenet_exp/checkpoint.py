"""Checkpoints: one dict of tensors and plain types, written whole or not at all.

Knows no W&B and no loop.
"""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from mobilenet_exp.errors import InputError
from mobilenet_exp.models import MobileNet
from mobilenet_exp.models.dialect import Dialect, adopt

FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`: to a file beside it first, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    with partial.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of `save_checkpoint` onto the CPU; runs no code from the file.

    Raises InputError for a file that is missing, unreadable or of another kind.
    """
    if not Path(path).is_file():
        raise InputError("checkpoint", path, "no such file; runs keep theirs in checkpoints/")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        allowed = "refused: it holds more than tensors and plain types, or is no checkpoint"
        raise InputError("checkpoint", path, allowed) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        allowed = "cannot be read: damaged, or no checkpoint"
        raise InputError("checkpoint", path, allowed) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or "model" not in state:
        raise InputError("checkpoint", path, f"not a checkpoint of train.py, format {FORMAT}")
    return state


def restore_model(model: MobileNet, state: dict[str, Any], path: str | Path) -> None:
    """Put a checkpoint's weights into `model`, all of them and no others, in their dialect."""
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError("checkpoint", path, f"does not fit its own model: {reason}") from error
    if "dialect" in state:
        adopt(model, Dialect(**state["dialect"]))
