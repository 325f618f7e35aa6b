"""What the first process writes and prints about a run. Trains nothing."""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilenet_exp.config.convert import run_title, to_dict, to_yaml
from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.models.profiling import Profile, profile_model
from mobilenet_exp.papers.comparison import Comparison, compare
from mobilenet_exp.tracking import terminal as reports
from mobilenet_exp.tracking.tracker import Tracker, tags_of
from mobilenet_exp.training.saving import check_images
from mobilenet_exp.training.session import Progress, Session


@dataclass
class Record:
    """What the first process writes and prints about a run; the other processes' is mute."""

    session: Session
    tracker: Tracker | None = None
    profile: Profile | None = None
    comparison: Comparison | None = None

    def line(self, text: str) -> None:
        if self.tracker:
            console.line(text)

    def show(self, batches: Iterable, label: str, total: int) -> Iterable:
        return console.progress(batches, label, total) if self.tracker else batches

    def epoch(self, metrics: dict[str, float]) -> None:
        """Log an epoch. Comes before saving: a crash repeats an epoch, skips none."""
        if self.tracker:
            progress = self.session.progress
            self.tracker.log(progress.epoch, metrics)
            self.tracker.summary(_best_summary(progress, self.comparison))
            epochs = self.session.config.train.epochs
            console.line(reports.epoch_line(progress.epoch, epochs, metrics))

    def close(self) -> dict[str, Any]:
        """Write and print the results, and return them."""
        folder = self.tracker.folder
        results = _results(self.session, folder.name, self.profile, self.comparison)
        self.tracker.write("results.json", json.dumps(results, indent=2) + "\n")
        reports.print_comparison(results)
        return results


def open_record(
    session: Session,
    folder: Path,
    overrides: tuple[str, ...],
    group: str | None,
    opened: contextlib.ExitStack,
    lines: list[str],
) -> Record:
    """Open the run's record in the first process, and announce the run."""
    if not session.team.is_first:
        return Record(session)
    config, progress = session.config, session.progress
    profile = profile_model(session.model, config.data.resolution)
    comparison = compare(
        config.model,
        config.data,
        session.num_classes,
        num_images=session.loaders.identity()["num_val"],
    )
    tracker = Tracker(
        folder,
        config=to_dict(config),
        title=run_title(config),
        mode=config.run.wandb,
        project=config.run.wandb_project,
        group=group,
        tags=(config.model.name, *tags_of(overrides)),
    )
    opened.enter_context(tracker)
    tracker.write("config.yaml", to_yaml(config))
    tracker.keep_until(progress.epoch)
    tracker.summary(profile.summary() | comparison.summary())
    device = f"{session.team.size} x {session.learner.device}".removeprefix("1 x ")
    reports.announce(folder, tracker.status, device, profile, progress.epoch, progress.update)
    for line in (*session.notes, *lines):
        console.line(line)
    if config.run.deterministic:
        console.line("only algorithms that repeat their bits: slower on a GPU, the same on a CPU")
    return Record(session, tracker, profile, comparison)


def finished(session: Session, path: Path) -> dict[str, Any] | None:
    """Return the results of a run that is done, if they are of the same images."""
    if not path.exists():
        return None
    try:
        results = json.loads(path.read_text())
        images = results["images"]
    except (ValueError, KeyError, TypeError) as error:
        allowed = f"{path} is damaged; without it the run is finished again from its checkpoint"
        raise InputError("run.root", session.config.run.root, allowed) from error
    check_images(session, images, path)
    console.line(f"{path.parent} is finished; another seed (train.seed=N) is another run")
    reports.print_comparison(results)
    return results


def _best_summary(progress: Progress, comparison: Comparison) -> dict[str, Any]:
    return {
        "best/top1": progress.top1,
        "best/top5": progress.top5,
        "best/epoch": progress.best_epoch,
        **comparison.summary(progress.top1, progress.top5),
    }


def _results(
    session: Session, name: str, profile: Profile, comparison: Comparison
) -> dict[str, Any]:
    config, progress = session.config, session.progress
    return {
        "name": name,
        "images": session.loaders.identity(),
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
        **comparison.to_results(progress.top1, progress.top5),
    }
