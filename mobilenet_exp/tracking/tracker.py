"""Where a run's figures go: `metrics.jsonl` in its folder, and Weights & Biases.

The file is the durable record; W&B shows the same.
"""

import contextlib
import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import wandb

from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError, RunError, first_line
from mobilenet_exp.core.files import from_here, write_file, writing
from mobilenet_exp.core.text import printable
from mobilenet_exp.machine.preemption import Preempted
from mobilenet_exp.machine.provenance import provenance
from mobilenet_exp.tracking import environment
from mobilenet_exp.tracking.environment import Mode

# characters that W&B shows of a name
MAX_NAME = 128
# curves by step: means over the updates since the point before. Those of an epoch have other
# keys, which W&B plots against the epoch.
STEP_KEYS = ("train/loss_step", "train/lr_step", "speed/images_per_s_step")
# the exit code that W&B shows as stopped by hand
KILLED = 255
# the file in a run's folder that says what made it: an entry for each start
PROVENANCE = "provenance.json"
# what W&B shows of it beside the configuration
IN_CONFIG = ("command", "git_commit", "versions")


class Tracker:
    """One run's record, as a context manager; closing marks W&B's run finished or failed.

    A failure also leaves its traceback in the folder's `error.txt`.

    `folder` is the run's folder and its name W&B's id, but for `run_id`; W&B's own files
    go to `root/wandb`, the folder's parent by default. `job_type` is train, eval or bench,
    and `overrides` are those of its command, None for a job that Python called;
    with `is_start=False` no entry is added to provenance.json.
    `mode` is auto, online, offline or disabled: auto is online where there is a key and a
    network, else offline, with the reason in `status`. Raises InputError if `online`
    is requested and not available.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: dict[str, Any],
        title: str,
        mode: str,
        project: str | None = None,
        group: str | None = None,
        tags: tuple[str, ...] = (),
        overrides: tuple[str, ...] | None = None,
        job_type: str = "train",
        run_id: str | None = None,
        root: Path | None = None,
        is_start: bool = True,
    ) -> None:
        self.folder = folder
        self._metrics: TextIO | None = None
        # None: not started, or W&B stopped responding
        self._run: wandb.Run | None = None
        self.status = ""
        self._last_step = 0
        self._mode = mode
        self._provenance = {"job_type": job_type, **provenance(f"{job_type}.py", overrides)}
        self._is_start = is_start
        self._own_id = run_id or folder.name
        self._init_args: dict[str, Any] = {
            "project": project,
            "id": self._own_id,
            "name": title,
            "group": group,
            # W&B refuses tags over 64 characters
            "tags": [printable(tag)[:64] for tag in tags],
            "job_type": job_type,
            "config": _shown(config | {key: self._provenance[key] for key in IN_CONFIG}),
            # W&B's service has a current folder of its own
            "dir": str((root or folder.parent).resolve()),
            "resume": "allow",
            "reinit": "create_new",
        }

    def __enter__(self) -> "Tracker":
        mode, reason = environment.resolve_mode(self._mode)
        if mode != "disabled":
            environment.check(self._init_args["project"])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"cannot hold the run's folder: {error.strerror}"
            raise InputError("run.root", self.folder.parent, problem) from error
        if mode == "disabled":
            self.status = "W&B: disabled"
        else:
            self._run = self._start(mode, reason)
            self._call(lambda run: run.define_metric("*", step_metric="epoch"))
            self._call(
                lambda run: [run.define_metric(key, step_metric="step") for key in STEP_KEYS]
            )
        try:
            if (self.folder / environment.KEPT).exists():
                # what an earlier start has left
                self.set_summary({"run/stopped": ""})
            # under an agent, W&B may know this folder as several runs; the first one stays
            if self._run and self._init_args["id"] == self._own_id:
                group = self._init_args["group"]
                self.write(environment.KEPT, environment.kept_text(self._run, group))
            if self._is_start:
                try:
                    starts = json.loads((self.folder / PROVENANCE).read_text())["starts"]
                except (OSError, ValueError, KeyError, TypeError):
                    # the first start, or a file that was cut off
                    starts = []
                text = json.dumps({"starts": [*starts, self._provenance]}, indent=2)
                self.write(PROVENANCE, text + "\n")
            (self.folder / "error.txt").unlink(missing_ok=True)
        except BaseException:
            self._call(lambda run: run.finish(exit_code=1))
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        code = 1 if kind else 0
        try:
            if self._metrics is not None:
                # what a full disk refused is still in its buffer, and is refused again
                with contextlib.suppress(OSError):
                    self._metrics.close()
            if isinstance(error, Preempted):
                self.set_summary({"run/stopped": error.line})
                if error.number == signal.SIGINT:
                    code = KILLED
                else:
                    self._call(lambda run: run.mark_preempting())
            elif error is not None:
                # a full disk must not hide the error itself
                with contextlib.suppress(RunError):
                    self.write("error.txt", "".join(traceback.format_exception(error)))
        finally:
            self._call(lambda run: run.finish(exit_code=code))

    def _call(self, action: Callable[["wandb.Run"], Any], what: str = "") -> None:
        """Make a call of W&B: a failure loses `what`, or all of W&B if `what` is empty.

        The files in the folder are the durable record; a training must not end because
        its dashboard did.
        """
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            # W&B's own, broken pipes, whatever its service died of
            reason = first_line(error)
            if what:
                console.line(f"W&B did not take {what} ({reason}); the run continues")
                return
            console.line(
                f"W&B stopped responding ({reason}); the run continues and its local files stay "
                "complete"
            )
            self._run = None
            # a next run starts a service of its own
            with contextlib.suppress(Exception):
                wandb.teardown(exit_code=1)

    def keep_until(self, epoch: int) -> None:
        """Drop the rows of epochs after `epoch`: they were logged but not saved.

        Those of steps stay, and are not logged again by the run that repeats them.
        """
        if not (self.folder / "metrics.jsonl").exists():
            return
        kept = [row for row in self.rows("epoch", "step") if row.get("epoch", 0) <= epoch]
        self._last_step = max((row.get("step", 0) for row in kept), default=0)
        text = "".join(json.dumps(row) + "\n" for row in kept)
        self.write("metrics.jsonl", text)

    def rows(self, *axes: str) -> list[dict[str, Any]]:
        """Return the rows of the metrics file that have one of `axes`, `epoch` or `step`.

        A line cut off by a crash is passed over.
        """
        rows, path = [], self.folder / "metrics.jsonl"
        text = path.read_text(errors="replace") if path.exists() else ""
        for line in text.splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return [row for row in rows if isinstance(row, dict) and set(axes) & row.keys()]

    def repeat(self) -> None:
        """Show in W&B the rows that the folder has from an earlier run."""
        rows = [*self.rows("step"), *self.rows("epoch")]
        self._call(lambda run: [run.log(row) for row in rows])

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        """Record the figures of a completed epoch, counted from 1, in the file and in W&B."""
        self._append({"epoch": epoch, **metrics}, is_durable=True)

    def log_step(self, step: int, figures: dict[str, float]) -> None:
        """Record a point of the curves by step, in the file and in W&B, unless it is there already.

        `figures` has some of STEP_KEYS, `step` is the number of updates made.
        """
        if step > self._last_step:
            self._last_step = step
            self._append({"step": step, **figures}, is_durable=False)

    def _append(self, row: dict[str, Any], *, is_durable: bool) -> None:
        """Append a row to the file; with `is_durable` flush it to disk, against a power cut."""
        line = json.dumps(row, allow_nan=False) + "\n"
        path = self.folder / "metrics.jsonl"
        with writing(path):
            if self._metrics is None:
                self._metrics = path.open("a")
            self._metrics.write(line)
            self._metrics.flush()
            if is_durable:
                os.fsync(self._metrics.fileno())
        self._call(lambda run: run.log(row))

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Show a table in W&B; the folder keeps such things as files of their own."""
        # in the summary: beside the figures, not as a step
        self._call(
            lambda run: run.summary.update({name: wandb.Table(columns=columns, data=rows)}), name
        )

    def picture(self, name: str, path: Path) -> None:
        """Show a PNG of the folder in W&B."""
        self._call(lambda run: run.summary.update({name: wandb.Image(str(path))}), name)

    def image_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Show a table in W&B whose first column are pictures (h, w, 3) uint8."""

        def show(run: "wandb.Run") -> None:
            data = [[wandb.Image(picture), *cells] for picture, *cells in rows]
            run.summary.update({name: wandb.Table(columns=columns, data=data)})

        self._call(show, name)

    def confusion_matrix(
        self, name: str, labels: list[int], answers: list[int], classes: list[str]
    ) -> None:
        """Show a confusion matrix in W&B."""

        def show(run: "wandb.Run") -> None:
            # a chart can only be logged as a step
            plot = wandb.plot.confusion_matrix(
                y_true=labels, preds=answers, class_names=classes, title="validation images"
            )
            run.log({name: plot})

        self._call(show, name)

    def artifact(self, path: Path, alias: str) -> None:
        """Upload a checkpoint to W&B, as a version of this run's model."""
        self._call(
            lambda run: run.log_artifact(
                str(path), name=f"model-{run.id}", type="model", aliases=[alias]
            ),
            f"{path.name} as an artifact",
        )

    def set_summary(self, figures: dict[str, Any]) -> None:
        """Set the run's single figures, by which W&B's table sorts and compares runs."""
        self._call(lambda run: run.summary.update(figures))

    def write(self, name: str, text: str) -> None:
        """Put a small file into the run's folder, whole or not at all."""
        write_file(self.folder / name, text)

    def draw(self, name: str, drawing: Callable[[Path], None]) -> Path:
        """Put a picture into the run's folder, whole or not at all: `drawing(path)` saves it."""
        write_file(self.folder / name, drawing)
        return self.folder / name

    def _start(self, mode: Mode, reason: str) -> "wandb.Run":
        args = self._init_args | {"settings": environment.settings()}
        args |= self._named(environment.read_surroundings())
        try:
            run = wandb.init(mode=mode, **args)
        except wandb.errors.CommError as error:
            reason = f"W&B opened no run: {first_line(error)}"
            if self._mode == "online":
                raise InputError("run.wandb", mode, reason) from error
            # releases the run's id, which the failed init still holds
            wandb.teardown()
            mode, run = "offline", wandb.init(mode="offline", **args)
        if mode == "online":
            self.status = f"W&B: {run.url}"
        else:
            self.status = _offline_line(run) + (f" ({reason})" if reason else "")
        self._init_args = args
        return run

    def _named(self, surroundings: environment.Surroundings) -> dict[str, Any]:
        """Return wandb.init's arguments with project, id, name, group, tags and folder resolved."""
        args = self._init_args
        found: dict[str, Any] = {
            "project": args["project"] or surroundings.project or environment.DEFAULT_PROJECT,
            "id": surroundings.run_id or args["id"],
            "name": printable(surroundings.name or args["name"])[:MAX_NAME],
            "group": surroundings.group or environment.known_group(self.folder, args["group"]),
            "tags": list(dict.fromkeys((*args["tags"], *surroundings.tags))),
            "dir": str(Path(os.environ.get("WANDB_DIR") or args["dir"]).resolve()),
        }
        try:
            Path(found["dir"]).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"cannot hold W&B's files: {error.strerror}"
            raise InputError("WANDB_DIR", found["dir"], problem) from error
        return found


def _offline_line(run: "wandb.Run") -> str:
    # run.dir is wandb/offline-run-.../files
    return f"W&B: offline, in {from_here(Path(run.dir).parents[1])}"


def _shown(value: Any) -> Any:
    """Return a configuration whose texts can be sent: a path may be bytes of no encoding."""
    if isinstance(value, dict):
        return {key: _shown(each) for key, each in value.items()}
    return printable(value) if isinstance(value, str) else value
