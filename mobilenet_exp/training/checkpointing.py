"""A run's checkpoints: when they are written, how a run resumes from them or goes back."""

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobilenet_exp.config.convert import stored_config
from mobilenet_exp.config.identity import differences
from mobilenet_exp.config.schema import Config
from mobilenet_exp.core.errors import InputError, NonFiniteLossError
from mobilenet_exp.core.text import plural
from mobilenet_exp.machine.preemption import Stop
from mobilenet_exp.training import step
from mobilenet_exp.training.state import Progress, Scalar, TrainMeter, TrainState
from mobilenet_exp.weights.averaging import keep_newest, kept_path
from mobilenet_exp.weights.checkpoint import load_latest, save_checkpoint

# updates between two looks at the loss where each look waits for the device
LOOK_EVERY = 50
# how often one epoch may go back to a checkpoint
MAX_ROLLBACKS = 3
OTHER_ROOT = "choose another run.root to start afresh"


class Checkpointer:
    """Saves a run into `folder` when a checkpoint is due, and stops it when a signal came.

    Every rank has one, and all decide alike; the main one writes, in `writer`, a thread beside
    the training.
    """

    def __init__(
        self, state: TrainState, folder: Path, stop: Stop, writer: ThreadPoolExecutor
    ) -> None:
        self.state, self.folder, self.stop, self._writer = state, folder, stop, writer
        self._written: Future = self._writer.submit(bool)
        self._watch = LossWatch(state.compute.device)
        self._saved_at = time.monotonic()

    def after_update(self) -> None:
        """Save if it is time to; raise Preempted once saved if a rank was asked to stop.

        Raises NonFiniteLossError if the loss is known not to be finite in one, and RunError if
        a checkpoint could not be written.
        """
        state, every = self.state, self.state.config.run.save_every_minutes
        if self._written.done():
            self._written.result()
        # the main rank has the clock
        is_due = every is not None and time.monotonic() - self._saved_at >= 60 * every
        is_bad = self._watch.is_bad(state.meter.loss_sum)
        is_due, is_to_stop, is_bad = state.world.any(
            is_due and state.world.is_main, self.stop.number is not None, is_bad
        )
        if is_bad:
            raise state.not_finite(state.step - 1)
        if is_due or is_to_stop:
            self.save()
        if is_to_stop:
            self._written.result()
            raise self.stop.preempted(state.progress.describe())

    def after_epoch(self, *, is_best: bool) -> None:
        """Save a completed epoch; raise Preempted if the run is to stop before its end."""
        self.save(is_best=is_best)
        (is_to_stop,) = self.state.world.any(self.stop.number is not None)
        progress = self.state.progress
        is_over = progress.epoch == self.state.config.train.epochs
        if is_to_stop or is_over:
            self._written.result()
        if is_to_stop and not is_over:
            raise self.stop.preempted(progress.describe())

    def save(self, *, is_best: bool = False) -> None:
        """Begin to write `last.pt`, and `best.pt` where this epoch is the best.

        Every rank calls this; the main one copies the state now and writes it in the background.
        The checkpoint before becomes `previous.pt`. Raises NonFiniteLossError instead of saving
        what is not finite, and RunError if the checkpoint before could not be written.
        """
        state = self.state
        meters = state.world.gather(state.meter.state_dict())
        check_finite(state)
        (is_bad,) = state.world.any(not step.is_finite(state.model))
        if is_bad:
            raise NonFiniteLossError(f"the weights are not finite after step {state.step - 1}")
        self._saved_at = time.monotonic()
        if state.world.is_main:
            copied = host_copy(state.to_checkpoint(meters))
            # one after the other
            self._written.result()
            keep = state.config.run.keep_best
            self._written = self._writer.submit(
                _write, self.folder, copied, is_best=is_best, keep=keep
            )

    def roll_back(self, error: NonFiniteLossError) -> str:
        """Return to the last checkpoint's weights, and continue after the failed update.

        The images since that checkpoint are skipped: the same ones would fail again.
        Returns a line about it. Raises NonFiniteLossError with advice if the run is not to
        go back, or has done so MAX_ROLLBACKS times in this epoch.
        """
        state, progress = self.state, self.state.progress
        wait([self._written])
        # what it has still to tell is of the weights that failed
        self._watch = LossWatch(state.compute.device)
        saved = None
        rolls_back = state.config.train.on_nonfinite == "rollback"
        if rolls_back and progress.rollbacks == MAX_ROLLBACKS:
            error = NonFiniteLossError(
                f"went back {MAX_ROLLBACKS} times in epoch {progress.epoch + 1}"
            )
        elif rolls_back:
            self._written.result()
            saved, _ = state.world.on_main(lambda: load_latest(self.folder))
        if saved is None:
            last = self.folder / "last.pt"
            where = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint yet"
            advice = "a lower optimizer.lr or train.on_nonfinite=skip may help"
            raise NonFiniteLossError(f"{error}; {where}; {advice}")
        state.load_weights(saved, self.folder / "last.pt")
        then = Progress(**saved["progress"])
        state.load_meter(saved)
        if then.epoch != progress.epoch:
            state.meter = TrainMeter()
        progress.rollbacks += 1
        self.save()
        return (
            f"restored weights from epoch {then.epoch + 1}, update {then.update}; "
            f"continuing after update {progress.update} of epoch {progress.epoch + 1}"
        )


@dataclass
class LossWatch:
    """Tells whether a sum of losses is finite, if it can, without waiting for the device.

    On a CPU it tells at once. From CUDA the answer is copied beside the work, and told when
    it has come; elsewhere every LOOK_EVERY updates.
    """

    device: torch.device
    num_looks: int = 0
    # the last answer that was asked for
    copied: Scalar | None = None

    def is_bad(self, loss_sum: Tensor) -> bool:
        """Return whether the sum is known not to be finite."""
        self.num_looks += 1
        if self.device.type not in ("cpu", "cuda") and self.num_looks % LOOK_EVERY:
            return False
        if self.device.type != "cuda":
            return not loss_sum.isfinite().item()
        is_bad = False
        if self.copied and self.copied.has_come:
            is_bad = not self.copied.item()
            self.copied = None
        if self.copied is None:
            self.copied = Scalar(loss_sum.isfinite(), self.device)
        return is_bad


def check_finite(state: TrainState) -> None:
    """Raise NonFiniteLossError if a loss so far was not finite in a rank; waits for all devices."""
    (is_bad,) = state.world.any(not state.meter.loss_sum.isfinite().item())
    if is_bad:
        raise state.not_finite(state.step - 1)


def resume(state: TrainState, checkpoint: dict[str, Any], path: Path) -> tuple[list[str], str]:
    """Continue from a checkpoint of this run; return lines about what is not as it was then.

    The second is about CPU threads, empty where there is nothing to say. Raises InputError if it
    was saved with a different configuration or for other images.
    """
    then = stored_config(checkpoint["config"], path)
    check_config(state.config, then, path)
    check_images(state.config, state.loaders.identity(), checkpoint["images"], path, then.data.root)
    state.load_weights(checkpoint, path)
    state.load_meter(checkpoint)
    state.progress = Progress(**checkpoint["progress"])
    lines = []
    asked, before = state.config.run.precision, then.run.precision
    if "auto" not in (asked, before) and asked != before:
        lines.append(f"was trained in {before} so far and goes on in {asked}")
    return lines, keep_threads(state, checkpoint)


def keep_threads(state: TrainState, checkpoint: dict[str, Any]) -> str:
    """Compute with as many CPU threads as before, unless a number is given: each sums its own way.

    A checkpoint has none of a GPU, or from before 0.6.
    """
    threads, processes = checkpoint.get("threads"), len(checkpoint.get("meters") or [0])
    is_given = state.config.run.threads is not None or bool(os.environ.get("OMP_NUM_THREADS"))
    now, cores, world = torch.get_num_threads(), os.cpu_count() or 1, state.world
    if is_given or threads in (None, now) or state.compute.device.type != "cpu":
        return ""
    before = plural(threads, "CPU thread")
    if processes != world.size or threads * world.ranks_on_machine > cores:
        return f"had {before} a process and goes on with {now}: sums differ in their last digits"
    torch.set_num_threads(threads)
    return f"goes on with {before}, as before; run.threads={now} changes it"


def check_config(ours: Config, theirs: Config, path: Path) -> None:
    """Refuse to continue with what `path` holds if it has a different configuration."""
    if differing := differences(ours, theirs):
        problem = f"{path} was saved with a different configuration: {', '.join(differing[:3])}"
        raise InputError("run.root", ours.run.root, f"{problem}; {OTHER_ROOT}")


def check_images(
    config: Config, ours: dict[str, Any], theirs: dict[str, Any], path: Path, root: str | None
) -> None:
    """Refuse to continue with what `path` holds if it was made with other images, of `root`."""
    # names of files are not in what was made before 0.12
    if theirs != {key: ours.get(key) for key in theirs}:
        where = f", of {root}" if root else ""
        problem = f"classes, counts or names of images differ from those that {path} was made with"
        raise InputError("data.root", config.data.root, f"{problem}{where}; {OTHER_ROOT}")


def host_copy(value: Any) -> Any:
    """Return plain containers with their tensors copied to this machine's memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True, memory_format=torch.preserve_format)
    if isinstance(value, dict):
        return type(value)((key, host_copy(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return type(value)(map(host_copy, value))
    return value


def _write(folder: Path, state: dict[str, Any], *, is_best: bool, keep: int) -> None:
    """Write a checkpoint under its names, and remove those of best epochs past `keep`."""
    also = [folder / "best.pt"] if is_best else []
    also += [kept_path(folder, state["epoch"])] if is_best and keep else []
    last, previous = folder / "last.pt", folder / "previous.pt"
    save_checkpoint(last, state, previous=previous, also=tuple(also))
    if is_best and keep:
        keep_newest(folder, keep)
