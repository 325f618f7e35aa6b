"""A training from its configuration to its results: where the parts meet. Knows no Hydra."""

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobilenet_exp.config.convert import run_name
from mobilenet_exp.config.schema import Config
from mobilenet_exp.core.errors import InputError, NonFiniteLossError
from mobilenet_exp.machine.device import keep_freed_memory, select_device, set_determinism
from mobilenet_exp.machine.distributed import Team, joined, launch, num_launched
from mobilenet_exp.machine.lock import held
from mobilenet_exp.machine.preemption import Stop, listening
from mobilenet_exp.training.loop import finish_epoch, train_epoch
from mobilenet_exp.training.record import Record, finished, open_record
from mobilenet_exp.training.saving import is_begun, resume, roll_back, save
from mobilenet_exp.training.session import Session, build_session, connect


def train(
    config: Config, *, overrides: tuple[str, ...] = (), group: str | None = None
) -> dict[str, Any]:
    """Train the configured network, or resume it, or return its result if it is done.

    Everything goes to `run.root/run_name(config)`; `overrides` become W&B's tags and
    `group` names the sweep. Returns the content of results.json, in processes but the
    first an empty dict. Raises InputError before anything is written, RunError for a run
    that cannot go on, and Preempted once a run that was asked to stop has saved.
    """
    if config.run.devices == 1:
        return _train(config, overrides, group)
    if num_launched() > 1:
        allowed = "torchrun has started the processes; must then be 1"
        raise InputError("run.devices", config.run.devices, allowed)
    return launch(
        _train,
        (config, overrides, group),
        processes=config.run.devices,
        max_restarts=config.run.max_restarts,
    )


def _train(config: Config, overrides: tuple[str, ...], group: str | None) -> dict[str, Any]:
    """Train in this process, one of as many as were launched."""
    device = select_device(config.run.device)
    if config.run.keep_memory and device.type == "cpu":
        keep_freed_memory()
    set_determinism(config.run.deterministic)
    folder = Path(config.run.root) / run_name(config)
    with listening() as stop, joined(device) as team, contextlib.ExitStack() as opened:
        is_new = team.share(lambda: not is_begun(folder / "checkpoints"))
        session = team.together(lambda: build_session(config, team, is_new=is_new))
        results = team.share(lambda: finished(session, folder / "results.json"))
        if results is not None:
            return results if team.is_first else {}
        connect(session)
        team.together(lambda: opened.enter_context(held(folder)) if team.is_first else None)
        lines = resume(session, folder / "checkpoints")
        record = team.together(
            lambda: open_record(session, folder, overrides, group, opened, lines)
        )
        _train_epochs(session, folder / "checkpoints", Watch(team, stop, config), record)
        return team.together(record.close) if team.is_first else team.together(dict)


@dataclass
class Watch:
    """Says after each update whether to save and whether to stop, alike in all processes."""

    team: Team
    stop: Stop
    config: Config
    saved_at: float = field(default_factory=time.monotonic)

    def asks(self) -> tuple[bool, bool]:
        every = self.config.run.save_every_minutes
        # the first process has the clock
        is_due = every is not None and time.monotonic() - self.saved_at >= 60 * every
        is_due, is_to_stop = self.team.any(
            is_due and self.team.is_first, self.stop.number is not None
        )
        return is_due, is_to_stop


def _train_epochs(session: Session, folder: Path, watch: Watch, record: Record) -> None:
    """Run the epochs that are left, going back to a checkpoint where that is wanted."""
    rolls_back = session.config.train.on_nonfinite == "rollback"
    if rolls_back and session.step == 0:
        save(session, folder)
    while session.progress.epoch < session.config.train.epochs:
        try:
            _train_epoch(session, folder, watch, record)
        except NonFiniteLossError as error:
            if not rolls_back:
                raise _with_advice(error, folder) from error
            record.line(f"{error}; {_roll_back(session, folder)}")
            save(session, folder)


def _train_epoch(session: Session, folder: Path, watch: Watch, record: Record) -> None:
    for _ in train_epoch(session, record.show):
        _heed(session, folder, watch)
    metrics, is_best = finish_epoch(session)
    session.team.together(lambda: record.epoch(metrics))
    save(session, folder, is_best=is_best)
    watch.saved_at = time.monotonic()
    _heed(session, folder, watch, is_saved=True)


def _heed(session: Session, folder: Path, watch: Watch, *, is_saved: bool = False) -> None:
    """Save where it is time to, and stop where that is asked for."""
    is_due, is_to_stop = watch.asks()
    if (is_due or is_to_stop) and not is_saved:
        save(session, folder)
        watch.saved_at = time.monotonic()
    if is_to_stop and session.progress.epoch < session.config.train.epochs:
        progress = session.progress
        raise watch.stop.preempted(f"after epoch {progress.epoch}, update {progress.update}")


def _roll_back(session: Session, folder: Path) -> str:
    try:
        return roll_back(session, folder)
    except NonFiniteLossError as error:
        raise _with_advice(error, folder) from error


def _with_advice(error: NonFiniteLossError, folder: Path) -> NonFiniteLossError:
    last = folder / "last.pt"
    saved = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint yet"
    return NonFiniteLossError(
        f"{error}; {saved}; a lower optimizer.lr or train.on_nonfinite=skip may help"
    )
