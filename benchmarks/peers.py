"""Whole processes of ours and of peers: timm's and torchvision's own scripts, as they are.

Each trains a network for one epoch and scores it, or scores it only, from the start of the
process to its end; each peer at its defaults and at its best flags.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import timm
import torch

ROOT = Path(__file__).resolve().parents[1]
# our names of networks, timm's, torchvision's
NAMES = {
    "v3_small": ("mobilenetv3_small_100", "mobilenet_v3_small"),
    "v3_large": ("mobilenetv3_large_100", "mobilenet_v3_large"),
    "v2": ("mobilenetv2_100", "mobilenet_v2"),
}


class Task(NamedTuple):
    """Class folders in `root`, their number, and what a network is trained with."""

    root: Path
    classes: int
    batch_size: int
    workers: int
    model: str

    @property
    def place(self) -> Path:
        """Return where processes may write."""
        return self.root.parent


# what makes a command of a task, with a number that differs from round to round
Command = Callable[[int], list[str]]


def timm_scripts(task: Task, checkout: Path) -> dict[str, Command]:
    """Return the commands of a checkout of timm."""
    name = NAMES[task.model][0]
    common = ["--data-dir", str(task.root), "--model", name, "--num-classes", str(task.classes)]
    common += ["-b", str(task.batch_size), "-j", str(task.workers), "--device", "cpu"]
    scored = [f"{checkout}/validate.py", *common, "--split", "val"]
    scored += ["--checkpoint", str(_weights(task))]
    trained = [f"{checkout}/train.py", *common, "--epochs", "1", "--opt", "sgd", "--lr", "0.05",
               "--aa", "", "--color-jitter", "0", "--train-interpolation", "bilinear",
               "--warmup-epochs", "0", "--output", str(task.place / "timm")]  # fmt: skip
    fast = ["--channels-last"]
    return {
        "timm, evaluation": lambda _: scored,
        "timm --channels-last, evaluation": lambda _: [*scored, *fast],
        "timm, training": lambda _: trained,
        "timm --channels-last, training": lambda _: [*trained, *fast],
    }


def torchvision_scripts(task: Task, folder: Path) -> dict[str, Command]:
    """Return the commands of torchvision's references/classification, which know no faster flag.

    Its network is scored with its random weights.
    """
    common = [f"{folder}/train.py", "--data-path", str(task.root), "--model",
              NAMES[task.model][1], "-b", str(task.batch_size), "-j", str(task.workers),
              "--device", "cpu", "--output-dir", str(task.place)]  # fmt: skip
    return {
        "torchvision, evaluation": lambda _: [*common, "--test-only"],
        "torchvision, training": lambda _: [*common, "--epochs", "1", "--lr", "0.05"],
    }


def our_scripts(task: Task) -> dict[str, Command]:
    """Return our commands; training gets another seed each round, for another run's folder."""
    own = [f"model={task.model}", "data=imagefolder", f"data.root={task.root}",
           f"data.batch_size={task.batch_size}", "run.wandb=disabled", "run.device=cpu",
           f"run.root={task.place}/runs"]  # fmt: skip
    trained = [str(ROOT / "train.py"), *own, "train.epochs=1", "optimizer=sgd",
               "optimizer.lr=0.05", "train.precise_bn_batches=0"]  # fmt: skip
    return {
        "ours, evaluation": lambda _: [str(ROOT / "eval.py"), *own, f"weights={_weights(task)}"],
        "ours, training": lambda number: [*trained, f"train.seed={number}"],
    }


def _weights(task: Task) -> Path:
    """Return a file of timm's weights, written once."""
    name = NAMES[task.model][0]
    path = task.place / f"{name}.pth"
    if not path.exists():
        torch.save(timm.create_model(name, num_classes=task.classes).state_dict(), path)
    return path


def whole_processes(commands: dict[str, Command], rounds: int, folder: Path) -> dict[str, list]:
    """Return the seconds of each command by round; each must succeed."""
    found: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds):
        for name, command in commands.items():
            words = [sys.executable, *command(number)]
            started = time.perf_counter()
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name} failed: {done.stderr[-2000:]}")
            found[name].append(time.perf_counter() - started)
    return found
