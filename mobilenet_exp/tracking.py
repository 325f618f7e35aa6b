"""Where a run's figures go: `metrics.jsonl` in its folder, and Weights & Biases.

Knows neither torch nor loops. The file is the durable record; W&B shows the same.
"""

import json
import os
import subprocess
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

import wandb

from mobilenet_exp.errors import InputError

# seconds to wait for W&B's server to open a run
INIT_TIMEOUT = 20
VERSIONS_OF = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "wandb")


class Tracker:
    """One run's record, as a context manager; closing marks W&B's run finished or failed.

    A failure also leaves its traceback in the folder's `error.txt`.

    `folder` is the run's folder and its name W&B's id; W&B's own files go to
    `folder.parent/wandb`. `mode` is auto, online, offline or disabled: auto is online
    where a key and a network are there, else offline, with the reason in `status`.
    Raises InputError if `online` is asked for and cannot be had.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: dict[str, Any],
        title: str,
        mode: str,
        project: str,
        group: str | None = None,
        tags: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.status = ""
        self._mode = mode
        self._init_args = {
            "project": project,
            "id": folder.name,
            "name": title,
            "group": group,
            # W&B refuses tags over 64 characters
            "tags": [tag[:64] for tag in tags],
            "job_type": "train",
            "config": {**config, "git_commit": git_commit(), "versions": versions()},
            "dir": str(folder.parent),
            "resume": "allow",
            "reinit": "create_new",
            "settings": _settings(),
        }

    def __enter__(self) -> "Tracker":
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._run = self._start()
        self._run.define_metric("*", step_metric="epoch")
        self.folder.mkdir(exist_ok=True)
        (self.folder / "error.txt").unlink(missing_ok=True)
        self._metrics = (self.folder / "metrics.jsonl").open("a")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._metrics.close()
        if error is not None:
            self.write("error.txt", "".join(traceback.format_exception(error)))
        self._run.finish(exit_code=1 if kind else 0)

    def keep_until(self, epoch: int) -> None:
        """Drop the rows of epochs after `epoch`: they were logged but not saved."""
        path = self.folder / "metrics.jsonl"
        rows = [line for line in path.read_text().splitlines() if line.endswith("}")]
        kept = [line for line in rows if json.loads(line)["epoch"] <= epoch]
        self._metrics.close()
        _write_text(path, "".join(f"{line}\n" for line in kept))
        self._metrics = path.open("a")

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        """Record the figures of a completed epoch, counted from 1, in both places."""
        row = {"epoch": epoch, **metrics}
        self._metrics.write(json.dumps(row) + "\n")
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        self._run.log(row)

    def summary(self, figures: dict[str, Any]) -> None:
        """Set the run's single figures, by which W&B's table sorts and compares runs."""
        self._run.summary.update(figures)

    def write(self, name: str, text: str) -> None:
        """Put a small file into the run's folder, whole or not at all."""
        _write_text(self.folder / name, text)

    def _start(self) -> "wandb.Run":
        mode = self._mode
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE", "auto")
        if mode in ("disabled", "offline"):
            run = wandb.init(mode=mode, **self._init_args)
            self.status = "W&B: disabled" if mode == "disabled" else self._offline_line(run)
            return run
        wandb.setup(self._init_args["settings"])
        try:
            # asks the server before init does: an init that fails holds on to the run's id
            has_key = wandb.login(prompt=False, verify=True)
            run = wandb.init(mode="online", **self._init_args) if has_key else None
        except wandb.errors.CommError as error:
            reason = f"W&B was not reached: {str(error).splitlines()[0]}"
            if mode == "online":
                raise InputError("run.wandb", mode, reason) from error
            return self._start_offline(reason)
        if run is None:
            if mode == "online":
                raise InputError("run.wandb", mode, "no W&B key here; `wandb login` stores one")
            return self._start_offline("no W&B key here")
        self.status = f"W&B: {run.url}"
        return run

    def _start_offline(self, reason: str) -> "wandb.Run":
        run = wandb.init(mode="offline", **self._init_args)
        self.status = f"{self._offline_line(run)} ({reason})"
        return run

    @staticmethod
    def _offline_line(run: "wandb.Run") -> str:
        # run.dir is wandb/offline-run-.../files
        folder = Path(run.dir).parents[1]
        folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
        return f"W&B: offline, in {folder}"


def _settings() -> "wandb.Settings":
    settings = wandb.Settings(init_timeout=INIT_TIMEOUT, silent=True, console="off")
    # flush rows each second, not each 15: a killed run keeps them. The setting is private.
    if hasattr(settings, "x_transaction_log_flush_interval"):
        settings.x_transaction_log_flush_interval = 1.0
    return settings


def versions() -> dict[str, str]:
    """Return the installed versions of the libraries that decide a result."""
    return {name: version(name) for name in VERSIONS_OF}


def git_commit() -> str | None:
    """Return the code's commit, with `-dirty` if files differ from it; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text)
    os.replace(partial, path)
