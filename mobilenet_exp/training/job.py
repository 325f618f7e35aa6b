"""A training from its configuration to its results: where the parts meet. Knows no Hydra."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from mobilenet_exp.config.identity import run_name
from mobilenet_exp.config.schema import Config
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.registry import import_modules
from mobilenet_exp.machine.arithmetic import select_precision, set_tf32
from mobilenet_exp.machine.cores import keeping_threads, settle_cpu
from mobilenet_exp.machine.device import select_device, set_determinism
from mobilenet_exp.machine.distributed import joined, said_by_each
from mobilenet_exp.machine.elastic import launch
from mobilenet_exp.machine.launched import place
from mobilenet_exp.machine.lock import locked
from mobilenet_exp.machine.preemption import listening
from mobilenet_exp.training import record
from mobilenet_exp.training.loop import train_epochs
from mobilenet_exp.training.saving import Checkpointer, is_begun, resume
from mobilenet_exp.training.session import build_session, connect, describe_task


def train(
    config: Config, *, overrides: tuple[str, ...] | None = None, group: str | None = None
) -> dict[str, Any]:
    """Train the configured network, or resume it, or return its result if it is done.

    Everything goes to `run.root/run_name(config)`; `overrides`, the words of the command,
    become W&B's tags and `group` names the sweep. Returns the content of results.json, in
    processes other than the first an empty dict. Raises InputError before anything is
    written, RunError for a run that cannot continue, and Preempted once a run that was asked
    to stop has saved.
    """
    if config.train.bn == "frozen" and not config.weights and not config.run.smoke:
        problem = "keeps the statistics of given weights, so it needs weights=..."
        raise InputError("train.bn", "frozen", problem)
    if config.run.devices > 1 and place().size > 1:
        problem = "torchrun or srun has started the processes, so it must be 1"
        raise InputError("run.devices", config.run.devices, problem)
    if place().size == 1:
        folder = Path(config.run.root) / run_name(config)
        results = record.finished(config, folder)
        if results is not None:
            record.show_finished(results, config, folder)
            return results
    if config.run.devices == 1:
        return _train(config, overrides, group)
    return launch(
        _train,
        (config, overrides, group),
        processes=config.run.devices,
        max_restarts=config.run.max_restarts,
    )


@keeping_threads()
def _train(config: Config, overrides: tuple[str, ...] | None, group: str | None) -> dict[str, Any]:
    """Train in this process, one of as many as were launched."""
    with said_by_each():
        import_modules(config.run.imports)
        device = select_device(config.run.device)
        precision = select_precision(config.run.precision, device, is_training=True)
    lines = settle_cpu(
        device,
        config.run.threads,
        keep_memory=config.run.keep_memory,
        leaves_busy_cores=place().size == 1,
    )
    set_determinism(config.run.deterministic)
    set_tf32(precision)
    folder = Path(config.run.root) / run_name(config)
    checkpoints = folder / "checkpoints"
    with listening() as stop, joined(device) as team, contextlib.ExitStack() as opened:
        is_new, stem_stride = team.share(lambda: _settled(config, folder))
        config = replace(config, model=replace(config.model, stem_stride=stem_stride))
        session = team.together(lambda: build_session(config, team, is_new=is_new))
        team.check_alike("run.root", config.run.root, f"the run {run_name(config)}")
        team.check_alike("data.root", config.data.root, describe_task(session))
        results = team.share(lambda: record.finished_with(session, folder))
        if results is not None:
            team.share(lambda: record.show_finished(results, config, folder))
            return results if team.is_first else {}
        team.share(lambda: opened.enter_context(locked(folder)))
        lines = _at_most_one(lines, resume(session, checkpoints))
        # after resuming: a checkpoint says how the network computes
        connect(session)
        log = team.together(
            lambda: record.open_record(session, folder, overrides, group, opened, lines)
        )
        checkpointer = Checkpointer(session, checkpoints, stop)
        opened.callback(checkpointer.wait)
        train_epochs(session, checkpointer, log)
        return team.together(log.close)


def _at_most_one(busy: list[str], resumed: list[str]) -> list[str]:
    """Return lines about a start; of two about threads, the second alone holds."""
    return resumed if any("CPU thread" in line for line in resumed) else [*busy, *resumed]


def _settled(config: Config, folder: Path) -> tuple[bool, int | None]:
    """Return whether the run is new, and its stem stride; a resumed one keeps its own."""
    is_new = not is_begun(folder / "checkpoints")
    stored = None if is_new else record.stored_config(folder)
    if stored is None or config.model.stem_stride is not None:
        return is_new, config.model.stem_stride
    return is_new, stored.model.stem_stride
