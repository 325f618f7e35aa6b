"""The checkpoints of a run's best epochs, and their mean as a checkpoint of its own."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.text import plural
from mobilenet_exp.models.fake_quantized import update_qparams
from mobilenet_exp.weights.checkpoint import load_checkpoint, save_checkpoint

AVERAGED = "averaged.pt"
# what is needed to go on training, and is not of a mean
LEFT_OUT = ("optimizer", "scaler", "meters")


def kept_path(folder: Path, epoch: int) -> Path:
    """Return where the checkpoint of an epoch that improved top-1 is kept."""
    return folder / f"best-{epoch:06}.pt"


def kept(folder: Path) -> list[Path]:
    """Return the checkpoints that are kept of such epochs, oldest first."""
    return sorted(folder.glob("best-*.pt"))


def keep_newest(folder: Path, count: int) -> None:
    """Remove all kept checkpoints but the newest `count`; best.pt is none of them."""
    for path in kept(folder)[::-1][count:]:
        path.unlink(missing_ok=True)


def average(folder: Path, count: int | None = None) -> Path:
    """Write the mean of the last `count` kept checkpoints of `folder`; None: of all.

    Weights, BatchNorm's statistics and int8 ranges are averaged in float64, and so is the
    running average of the weights where there is one. Returns the path, `averaged.pt`.
    Raises InputError if fewer are kept, or if one cannot be read.
    """
    paths = kept(folder)
    wanted = len(paths) if count is None else count
    if count is not None and count < 2:
        raise InputError("COUNT", count, "must be at least 2")
    if not 2 <= wanted <= len(paths):
        least = max(wanted, 2)
        problem = f"holds {plural(len(paths), 'checkpoint')} of best epochs, {least} are needed"
        raise InputError("RUN", folder.parent, f"{problem}; train with run.keep_best={least}")
    states = [load_checkpoint(path) for path in paths[-wanted:]]
    found: dict[str, Any] = {k: v for k, v in states[-1].items() if k not in LEFT_OUT}
    for key in ("model", "model_ema", "rounding"):
        if key in found:
            found[key] = _mean([state[key] for state in states])
    update_qparams(found.get("rounding", {}))
    found["averaged"] = [state["epoch"] for state in states]
    del found["format"]
    save_checkpoint(folder / AVERAGED, found)
    return folder / AVERAGED


def _mean(weights: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each tensor; of counts, the last."""
    found = {}
    for name, last in weights[-1].items():
        if last.is_floating_point():
            values = torch.stack([each[name].double() for each in weights])
            found[name] = values.mean(0).to(last.dtype)
        else:
            found[name] = last
    return found


def main(arguments: list[str]) -> None:
    """Average the kept checkpoints of the run whose folder is named."""
    if len(arguments) not in (1, 2) or (len(arguments) == 2 and not arguments[1].isdecimal()):
        problem = "must be a run's folder, and how many checkpoints to average, if not all"
        raise InputError("RUN", " ".join(arguments) or None, problem)
    run = Path(arguments[0]).expanduser()
    folder = run if run.name == "checkpoints" else run / "checkpoints"
    if not folder.is_dir():
        raise InputError("RUN", run, "is not the folder of a run: it has no checkpoints/")
    path = average(folder, int(arguments[1]) if len(arguments) == 2 else None)
    epochs = ", ".join(map(str, load_checkpoint(path)["averaged"]))
    console.line(f"{path}: mean of epochs {epochs}; python eval.py checkpoint={path} scores it")
