"""What is written and printed about a run: by the first process, for all. Trains nothing."""

import contextlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from mobilenet_exp.config.convert import read_config, to_dict, to_yaml
from mobilenet_exp.config.identity import learned_words, run_label
from mobilenet_exp.config.schema import Config
from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data.loaders import names_of
from mobilenet_exp.evaluation.metrics import Predictions
from mobilenet_exp.machine.device import describe_device
from mobilenet_exp.machine.memory import peak_memory
from mobilenet_exp.models.profiling import Profile, profile_model
from mobilenet_exp.papers.comparison import Comparison, Unpublished, compare
from mobilenet_exp.tracking import terminal
from mobilenet_exp.tracking.environment import is_under_agent
from mobilenet_exp.tracking.tracker import Tracker
from mobilenet_exp.training.gallery import Gallery
from mobilenet_exp.training.saving import check_config, check_images, other_images
from mobilenet_exp.training.session import Session
from mobilenet_exp.training.tracing import Tracer

# times that an epoch must be slower than the fastest to be remarked upon
MUCH_SLOWER = 3


class Record:
    """The record of a process that is not the first: it writes and prints nothing."""

    def line(self, text: str) -> None:
        """Print one line."""

    def show(self, batches: Iterable, label: console.Label, total: int) -> Iterable:
        """Pass batches on, and show how far they are."""
        return console.no_progress(batches, label, total)

    def update(self) -> None:
        """Print a line about an epoch under way, if it is time to and there is no bar.

        Ends a trace of updates that was asked for.
        """

    def epoch(self, metrics: dict[str, float], best: Predictions | None = None) -> None:
        """Log an epoch. Comes before saving: a crash repeats an epoch, skips none.

        `best` are the answers to the validation images if it is the best epoch so far.
        """

    def close(self) -> dict[str, Any]:
        """Write and print the results, and return them."""
        return {}


class FirstRecord(Record):
    """The record of the first process: metrics, W&B, the terminal, the results."""

    def __init__(
        self,
        session: Session,
        tracker: Tracker,
        profile: Profile,
        comparison: Comparison | Unpublished,
    ) -> None:
        self.session, self.tracker = session, tracker
        self.profile, self.comparison = profile, comparison
        self._spoke_at = time.monotonic()
        # images/s of the fastest epoch so far
        self._fastest = 0.0
        device = session.learner.device
        self.gallery = Gallery(session, tracker, comparison)
        self._tracer = Tracer(session.config.run.profile, tracker.folder, device)

    def line(self, text: str) -> None:
        console.line(text)

    def show(self, batches: Iterable, label: console.Label, total: int) -> Iterable:
        return console.progress(self.gallery.looking(batches), label, total)

    def update(self) -> None:
        if traced := self._tracer.after_update():
            console.line(traced)
        session, every = self.session, self.session.config.run.log_every_minutes
        is_due = every is not None and time.monotonic() - self._spoke_at >= 60 * every
        if not is_due or console.is_terminal():
            return
        self._spoke_at = time.monotonic()
        progress, meter = session.progress, session.meter
        loss = meter.loss_sum.item() / max(meter.num_images, 1)
        console.line(
            f"epoch {progress.epoch + 1}/{session.config.train.epochs}, update {progress.update} "
            f"of {session.loaders.sampler.num_updates}: loss {loss:.3f}, "
            f"{session.pace.words(*session.to_come)}"
        )

    def epoch(self, metrics: dict[str, float], best: Predictions | None = None) -> None:
        progress = self.session.progress
        self.tracker.log(progress.epoch, metrics)
        self.gallery.epoch(best)
        self._spoke_at = time.monotonic()
        if progress.best_epoch:
            figures: dict[str, Any] = {
                "best/top1": progress.top1,
                "best/top5": progress.top5,
                "best/epoch": progress.best_epoch,
            }
            self.tracker.set_summary(
                figures | self.comparison.summary(progress.top1, progress.top5)
            )
        epochs = self.session.config.train.epochs
        console.line(terminal.epoch_line(progress.epoch, epochs, metrics))
        if line := self._slow_line(metrics.get("speed/images_per_s", self._fastest)):
            console.line(line)
        for line in terminal.odd_lines(metrics | {"epoch": progress.epoch}, progress.left_out):
            console.line(line)

    def _slow_line(self, speed: float) -> str:
        """Say what to do about an epoch much slower than another on a CPU's several threads."""
        self._fastest = max(self._fastest, speed)
        device, threads = self.session.learner.device, torch.get_num_threads()
        if device.type != "cpu" or threads == 1 or speed * MUCH_SLOWER > self._fastest:
            return ""
        return (
            f"  the fastest epoch ran at {self._fastest:.0f} images/s: other programs may use the "
            "cores, of which run.threads=1 suffers least"
        )

    def end_trace(self) -> None:
        """End a trace that the run was too short for."""
        if traced := self._tracer.close():
            console.line(traced)

    def close(self) -> dict[str, Any]:
        results = _results(self.session, self.tracker.folder.name, self.profile, self.comparison)
        # before the run counts as finished: one that is cut off here does it again
        self.gallery.close(self.profile)
        self.tracker.write("results.json", json.dumps(results, indent=2) + "\n")
        terminal.print_comparison(results)
        terminal.print_next(self.tracker.folder, self.session.config.run.root)
        return results


def open_record(
    session: Session,
    folder: Path,
    overrides: tuple[str, ...] | None,
    group: str | None,
    opened: contextlib.ExitStack,
    lines: list[str],
) -> Record:
    """Open the run's record; in the first process, announce the run."""
    if not session.team.is_first:
        return Record()
    config = session.config
    profile = profile_model(session.model, config.data.resolution)
    comparison = compare(
        config.model,
        config.data,
        session.num_classes,
        num_images=session.loaders.num_val,
        is_rounded=config.train.quantise is not None,
    )
    tracker = Tracker(
        folder,
        config=what_runs(session),
        title=run_label(config, overrides or ()),
        mode=config.run.wandb,
        project=config.run.wandb_project,
        group=group,
        tags=(config.model.name, *learned_words(overrides or ())),
        overrides=overrides,
    )
    opened.enter_context(tracker)
    tracker.write("config.yaml", to_yaml(config))
    tracker.keep_until(session.progress.epoch)
    learner = session.learner
    device = describe_device(learner.device, session.team.size, learner.precision)
    if readers := session.loaders.describe_workers():
        device += f", {readers}" + (" each" if session.team.size > 1 else "")
    tracker.set_summary(profile.summary() | comparison.summary() | {"run/device": device})
    terminal.announce(folder, tracker.status, device, profile, session.progress.words())
    for line in (*session.notes, *lines):
        console.line(line)
    if config.run.deterministic:
        console.line("using deterministic algorithms (slower on a GPU)")
    record = FirstRecord(session, tracker, profile, comparison)
    record.gallery.open()
    opened.callback(record.end_trace)
    return record


def what_runs(session: Session) -> dict[str, Any]:
    """Return the configuration with the values that run in place of those left open."""
    found = to_dict(session.config)
    learner, loaders = session.learner, session.loaders
    found["model"]["num_classes"] = session.num_classes
    data = found["data"]
    data["train_resolution"] = data["train_resolution"] or data["resolution"]
    data["batch_size"] = loaders.sampler.batch_size
    found["run"] |= {
        "device": learner.device.type,
        "devices": session.team.size,
        "workers": loaders.train.workers,
        "threads": torch.get_num_threads(),
        "precision": learner.precision.value,
    }
    return found


def stored_config(folder: Path) -> Config | None:
    """Return the configuration that a run's folder keeps, or None if there is none to read."""
    try:
        return read_config((folder / "config.yaml").read_text())
    except (OSError, ValueError):
        return None


def finished(config: Config, folder: Path) -> dict[str, Any] | None:
    """Return the results of a run that is done, without a look at its pixels; else None.

    The whole configuration must agree, not the run's name alone, and the names of the image
    files: where these have moved, `finished_with` looks at them. Raises InputError for a
    damaged file, and for results of a different configuration or of other images.
    """
    path = folder / "results.json"
    if not path.exists():
        return None
    results = _read_results(path, config)
    place, known = _place(config), results["images"].get("names_sha256")
    if place is not None and results["data_root"] != place:
        return None
    if place is not None and known is not None:
        try:
            # an address is asked for when its images are read
            found = None if "://" in place else names_of(config)
        except InputError:
            # they are gone, as from a disk that is not mounted
            found = None
        if found is None:
            console.line(f"{place} was not looked at: the images may have changed")
        elif found != known:
            raise other_images(config, path, place)
    return results


def finished_with(session: Session, folder: Path) -> dict[str, Any] | None:
    """Return the results of a run that is done, if its configuration and images agree."""
    path = folder / "results.json"
    if not path.exists():
        return None
    results = _read_results(path, session.config)
    check_images(session, results["images"], path, results["data_root"])
    return results


def show_finished(results: dict[str, Any], config: Config, folder: Path) -> None:
    """Say that a run is done, and print its table; `wandb agent`'s run gets its results."""
    if is_under_agent():
        tracker = Tracker(
            folder,
            config=to_dict(config),
            title=run_label(config, ()),
            mode=config.run.wandb,
            project=config.run.wandb_project,
            # nothing is computed
            is_start=False,
        )
        with tracker:
            tracker.repeat(tracker.rows())
            keys = ("top1", "top5", "epoch")
            best = (results["top1"], results["top5"], results["best_epoch"])
            figures = {f"best/{key}": value for key, value in zip(keys, best, strict=True)}
            figures |= {f"model/{key}": results[key] for key in ("madds", "params")}
            tracker.set_summary(figures)
    console.line(f"{folder} is already finished; train.seed=N starts a new run; its results:")
    if config.run.precision not in ("auto", results["precision"]):
        asked = f"run.precision={config.run.precision} is not looked at"
        console.line(
            f"{asked}: it was computed in {results['precision']}; run.root=... computes it anew"
        )
    terminal.print_comparison(results)


def _read_results(path: Path, config: Config) -> dict[str, Any]:
    """Read results, and compare the configuration that they were made with."""
    stored = stored_config(path.parent)
    if stored is None:
        problem = f"config.yaml beside {path} is missing or damaged"
        way_out = "delete results.json and repeat the command to rebuild both"
        raise InputError("run.root", config.run.root, f"{problem}; {way_out}")
    check_config(config, stored, path)
    try:
        results = json.loads(path.read_text())
        results["images"], results["model"]
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{path} is damaged; delete it and repeat the command to rebuild it"
        raise InputError("run.root", config.run.root, problem) from error
    return {"data_root": None, "peak_memory_mb": None, "precision": "float32", **results}


def _place(config: Config) -> str | None:
    root = config.data.root
    return root if root is None or "://" in root else str(Path(root).resolve())


def _results(
    session: Session, name: str, profile: Profile, comparison: Comparison | Unpublished
) -> dict[str, Any]:
    config, progress = session.config, session.progress
    return {
        "name": name,
        "images": session.loaders.identity(),
        "data_root": _place(config),
        "model": config.model.name,
        "width_mult": config.model.width_mult,
        "data": config.data.name,
        "resolution": config.data.resolution,
        "num_classes": session.num_classes,
        **profile._asdict(),
        "top1": progress.top1,
        "top5": progress.top5,
        "best_epoch": progress.best_epoch,
        "last_top1": progress.last_top1,
        "epochs": progress.epoch,
        "seconds": round(progress.seconds, 1),
        **{"peak_memory_mb": None} | peak_memory(session.learner.device),
        "left_out": progress.left_out,
        "passed_over": session.loaders.others,
        "precision": session.learner.precision.value,
        "quantise": config.train.quantise,
        **comparison.to_results(progress.top1, progress.top5),
    }
