"""A run's checkpoints: when they are written, and how a run resumes from them.

Prints and logs nothing.
"""

import os
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mobilenet_exp.config.convert import stored_config, to_dict
from mobilenet_exp.config.identity import differences
from mobilenet_exp.config.schema import Config
from mobilenet_exp.core.errors import InputError, NonFiniteLossError, known_to_all
from mobilenet_exp.core.text import plural
from mobilenet_exp.machine.preemption import Stop
from mobilenet_exp.training import engine
from mobilenet_exp.training.engine import TrainMeter
from mobilenet_exp.training.optim import load_optimizer
from mobilenet_exp.training.session import (
    Progress,
    Session,
    check_finite,
    check_loaded,
    not_finite,
)
from mobilenet_exp.training.signals import Flags, LossWatch
from mobilenet_exp.training.writing import Writer, host_copy
from mobilenet_exp.weights.averaging import forget_all_but, kept_path
from mobilenet_exp.weights.checkpoint import (
    load_latest,
    restore_model,
    restore_ranges,
    save_checkpoint,
)

# how often one epoch may go back to a checkpoint
MAX_ROLLBACKS = 3


class Checkpointer:
    """Saves a session into `folder` when it is time to, and stops it when it is asked to.

    Every process has one, and all decide alike; the first one writes, beside the training.
    """

    def __init__(self, session: Session, folder: Path, stop: Stop) -> None:
        self.session, self.folder, self.stop = session, folder, stop
        self._writer = Writer()
        self._watch = LossWatch(session.learner.device)
        self._asked_at = time.monotonic()

    def before_first_update(self) -> None:
        """Save where a run must be able to go back to its start."""
        if self._rolls_back and self.session.step == 0:
            self._save()

    def after_update(self) -> None:
        """Send what this process has to say, and act on what is heard from all.

        Saves if it is time to, and raises Preempted once saved if the run is to stop. Raises
        in all processes what kept one from loading its images, or NonFiniteLossError.
        """
        session = self.session
        flags = Flags(
            save_is_due=self._is_due(),
            is_to_stop=self._is_asked_to_stop,
            cannot_write=self._writer.has_failed,
            cannot_load=session.problem is not None,
            is_not_finite=self._watch.is_bad(session.meter.loss_sum),
        )
        self._act(session.signals.exchange(flags), delay=session.signals.delay)

    def after_updates(self) -> None:
        """Act on what was said after an epoch's last update, and is not heard yet."""
        self._act(self.session.signals.last(), delay=0)

    def _act(self, heard: Flags, *, delay: int) -> None:
        """Do what is heard of `delay` updates ago."""
        if heard.cannot_load:
            check_loaded(self.session)
        if heard.is_not_finite or heard.is_to_stop:
            # nobody will hear what is under way
            self.session.signals.last()
        if heard.is_not_finite:
            raise not_finite(self.session, self.session.step - 1 - delay)
        if heard.cannot_write:
            self.finish()
        if heard.save_is_due or heard.is_to_stop:
            self._save()
        if heard.is_to_stop:
            self.finish()
            raise self.stop.preempted(self.session.progress.words())

    def _is_due(self) -> bool:
        """Return whether it is time to save; the first process has the clock."""
        every = self.session.config.run.save_every_minutes
        is_due = every is not None and time.monotonic() - self._asked_at >= 60 * every
        if is_due:
            self._asked_at = time.monotonic()
        return is_due and self.session.team.is_first

    def after_epoch(self, *, is_best: bool) -> None:
        """Save a completed epoch; raise Preempted if the run is to stop before its end."""
        self._save(is_best=is_best)
        (is_to_stop,) = self.session.team.any(self._is_asked_to_stop)
        progress = self.session.progress
        is_over = progress.epoch == self.session.config.train.epochs
        if is_to_stop or is_over:
            self.finish()
        if is_to_stop and not is_over:
            raise self.stop.preempted(progress.words())

    def wait(self) -> None:
        """Wait until nothing is being written, when a run ends however it ends."""
        self._writer.wait()

    def finish(self) -> None:
        """Wait until all is written. Raises RunError in all processes if it could not be."""
        self.session.team.share(self._writer.join)

    def roll_back(self, error: NonFiniteLossError) -> str:
        """Return to the last checkpoint's weights, and continue after the failed update.

        The images since that checkpoint are skipped: the same ones would fail again.
        Returns a line about it. Raises NonFiniteLossError with advice if the run is not to
        go back, or has done so MAX_ROLLBACKS times in this epoch.
        """
        self.wait()
        # what was said of the weights that failed
        self.session.signals.last()
        self._watch = LossWatch(self.session.learner.device)
        if not self._rolls_back:
            raise self._with_advice(error) from error
        progress = self.session.progress
        if progress.rollbacks == MAX_ROLLBACKS:
            words = f"went back {MAX_ROLLBACKS} times in epoch {progress.epoch + 1}"
            raise self._with_advice(NonFiniteLossError(words)) from error
        self.finish()
        state, _ = self.session.team.share(lambda: load_latest(self.folder))
        if state is None:
            raise self._with_advice(error) from error
        _restore(self.session, state, self.folder / "last.pt")
        then = Progress(**state["progress"])
        self.session.meter = _own_meter(self.session, _meters(state))
        if then.epoch != progress.epoch:
            self.session.meter = TrainMeter()
        progress.rollbacks += 1
        self._save()
        return (
            f"restored weights from epoch {then.epoch + 1}, update {then.update}; "
            f"continuing after update {progress.update} of epoch {progress.epoch + 1}"
        )

    @property
    def _rolls_back(self) -> bool:
        return self.session.config.train.on_nonfinite == "rollback"

    @property
    def _is_asked_to_stop(self) -> bool:
        return self.stop.number is not None

    def _save(self, *, is_best: bool = False) -> None:
        save(self.session, self.folder, self._writer, is_best=is_best)
        self._asked_at = time.monotonic()

    def _with_advice(self, error: NonFiniteLossError) -> NonFiniteLossError:
        last = self.folder / "last.pt"
        saved = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint yet"
        advice = "a lower optimizer.lr or train.on_nonfinite=skip may help"
        return known_to_all(NonFiniteLossError(f"{error}; {saved}; {advice}"))


def save(session: Session, folder: Path, writer: Writer, *, is_best: bool = False) -> None:
    """Let `writer` write `last.pt`, and `best.pt` where this epoch is the best, into `folder`.

    Every process calls this, the first one writes what is to be saved now, while training
    goes on. The checkpoint before becomes `previous.pt`. Raises NonFiniteLossError instead of
    saving what is not finite, what kept a process from loading its images, and RunError if
    the checkpoint before could not be written.
    """
    check_loaded(session)
    meters = session.team.gather(session.meter.state_dict())
    check_finite(session)
    (is_bad,) = session.team.any(not engine.is_finite(session.model))
    if is_bad:
        problem = f"the weights are not finite after step {session.step - 1}"
        raise known_to_all(NonFiniteLossError(problem))
    session.team.share(
        lambda: writer.start(
            partial(
                _write,
                folder,
                _state(session, meters),
                is_best=is_best,
                keep=session.config.run.keep_best,
            )
        )
    )


def _write(folder: Path, state: dict[str, Any], *, is_best: bool, keep: int) -> None:
    """Write a checkpoint under its names, and remove those of best epochs past `keep`."""
    also = [folder / "best.pt"] if is_best else []
    also += [kept_path(folder, state["epoch"])] if is_best and keep else []
    last, previous = folder / "last.pt", folder / "previous.pt"
    save_checkpoint(last, state, previous=previous, also=tuple(also))
    if is_best and keep:
        forget_all_but(folder, keep)


def _state(session: Session, meters: list) -> dict[str, Any]:
    """Return what a checkpoint holds, as it is now."""
    learner = session.learner
    state: dict[str, Any] = {
        "config": to_dict(session.config),
        "images": session.loaders.identity(),
        "classes": session.loaders.classes,
        "num_classes": session.num_classes,
        "epoch": session.progress.epoch,
        "progress": asdict(session.progress),
        "meters": meters,
        "dialect": asdict(session.model.dialect),
        "model": session.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
    }
    if learner.average:
        state["model_ema"] = learner.average.state_dict()
    if learner.rounding:
        state["rounding"] = learner.rounding.ranges.state_dict()
    if learner.device.type == "cpu":
        state["threads"] = torch.get_num_threads()
    if learner.scaler:
        state["scaler"] = learner.scaler.state_dict()
    return host_copy(state)


def is_begun(folder: Path) -> bool:
    """Return whether `folder` has a checkpoint to resume from."""
    return any((folder / name).exists() for name in ("last.pt", "previous.pt"))


def resume(session: Session, folder: Path) -> list[str]:
    """Continue from the last checkpoint of `folder` if there is one; return lines about damage.

    Raises InputError if none can be read, or if it was saved with a different
    configuration or for other images.
    """
    state, lines = session.team.share(lambda: load_latest(folder))
    if state is None:
        return lines
    path = folder / "last.pt"
    theirs = stored_config(state["config"], path)
    session.team.together(lambda: check_config(session.config, theirs, path))
    place = state["config"]["data"]["root"]
    session.team.together(lambda: check_images(session, state["images"], path, place))
    _restore(session, state, path)
    session.progress = Progress(**state["progress"])
    session.meter = _own_meter(session, _meters(state))
    asked, then = session.config.run.precision, theirs.run.precision
    if "auto" not in (asked, then) and asked != then:
        lines.append(f"was trained in {then} so far and goes on in {asked}")
    return [*lines, *_keep_threads(session, state.get("threads"), len(_meters(state)))]


def _keep_threads(session: Session, threads: int | None, processes: int) -> list[str]:
    """Compute with as many CPU threads as before, unless a number is given: each sums its own way.

    `threads` is what each of so many `processes` had, None on a GPU or before 0.6.
    """
    is_given = session.config.run.threads is not None or bool(os.environ.get("OMP_NUM_THREADS"))
    now, cores, team = torch.get_num_threads(), os.cpu_count() or 1, session.team
    if is_given or threads in (None, now) or session.learner.device.type != "cpu":
        return []
    before = plural(threads, "CPU thread")
    if processes != team.size or threads * team.sharing > cores:
        return [f"had {before} a process and goes on with {now}: sums differ in their last digits"]
    torch.set_num_threads(threads)
    return [f"goes on with {before}, as before; run.threads={now} changes it"]


def _meters(state: dict[str, Any]) -> list[dict[str, Any]]:
    # "tallies" in checkpoints from before 0.2
    return state.get("meters") or state["tallies"]


def _restore(session: Session, state: dict[str, Any], path: Path) -> None:
    learner = session.learner
    restore_model(session.model, state, path)
    load_optimizer(learner.optimizer, state["optimizer"])
    if learner.scaler and "scaler" in state:
        learner.scaler.load_state_dict(state["scaler"])
    if learner.average:
        restore_model(learner.average.model, state | {"model": state["model_ema"]}, path)
    if learner.rounding:
        restore_ranges(learner.rounding, state, path)


def _own_meter(session: Session, meters: list[dict[str, Any]]) -> TrainMeter:
    """Return this process's sums; if the number of processes changed, the first takes all."""
    team = session.team
    if len(meters) == team.size:
        return TrainMeter(**meters[team.rank])
    # every process counts the same updates and seconds
    alike = {key: meters[0][key] for key in ("num_skipped", "skipped_in_a_row", "seconds")}
    if not team.is_first:
        return TrainMeter(**alike)
    added = ("loss_sum", "correct", "num_images", "num_unturned")
    sums = {key: sum(each.get(key, 0) for each in meters) for key in added}
    left_out = {key: why for each in meters for key, why in each.get("left_out", {}).items()}
    return TrainMeter(**sums | alike, left_out=left_out)


def check_config(ours: Any, theirs: Any, path: Path) -> None:
    """Refuse to continue with what `path` holds if it has a different configuration."""
    if found := differences(ours, theirs):
        problem = f"{path} was saved with a different configuration: {', '.join(found[:3])}"
        way_out = "choose another run.root to start afresh"
        raise InputError("run.root", ours.run.root, f"{problem}; {way_out}")


def check_images(session: Session, images: dict[str, Any], path: Path, place: str | None) -> None:
    """Refuse to continue with what `path` holds if it was trained on other images, of `place`."""
    ours = session.loaders.identity()
    # names of files are not in what was made before 0.12
    if images != {key: ours.get(key) for key in images}:
        raise other_images(session.config, path, place)


def other_images(config: Config, path: Path, place: str | None) -> InputError:
    """Return what is said where `path` was made of other images, which lay in `place`."""
    where = f", of {place}" if place else ""
    problem = f"classes, counts or names of images differ from those that {path} was made with"
    way_out = "choose another run.root to start afresh"
    return InputError("data.root", config.data.root, f"{problem}{where}; {way_out}")
