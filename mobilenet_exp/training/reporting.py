"""What is written and printed about a run: metrics, W&B, pictures, tables, results.

The main rank reports for all; the others have a `SilentReporter`.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.utils import make_grid, save_image

from mobilenet_exp.config.convert import read_config, to_yaml
from mobilenet_exp.config.identity import learned_overrides, run_label, run_title
from mobilenet_exp.config.schema import Config
from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.text import as_csv, plural
from mobilenet_exp.data.loaders import image_identity
from mobilenet_exp.evaluation.answers import answer_files, class_titles
from mobilenet_exp.evaluation.metrics import Predictions
from mobilenet_exp.evaluation.showing import show_answers
from mobilenet_exp.machine.compute import Compute
from mobilenet_exp.machine.memory import peak_memory
from mobilenet_exp.machine.preemption import Preempted
from mobilenet_exp.models.profiling import (
    BlockCost,
    LayerCost,
    Profile,
    num_params,
    profile_layers,
    sum_blocks,
)
from mobilenet_exp.papers.comparison import Comparison, compare
from mobilenet_exp.tracking import terminal
from mobilenet_exp.tracking.environment import is_under_agent
from mobilenet_exp.tracking.pictures import Throttle, draw_curves
from mobilenet_exp.tracking.tracker import Tracker
from mobilenet_exp.training.checkpointing import check_config, check_images
from mobilenet_exp.training.state import Scalar, TrainState

# times that an epoch must be slower than the fastest to be remarked upon
MUCH_SLOWER = 3
# the folder, in the run's, of what the best epoch answered
BEST = "best"
CURVES, FIRST_BATCH = "curves.png", "first_batch.png"
CPU = torch.device("cpu")
# points of the curves by step in an epoch
POINTS = 50
# images of the first batch that are shown, in rows of ROW, of at most SIDE pixels
SHOWN, ROW, SIDE = 32, 8, 160
# standard deviations of the network's input that are shown as black and as white
REACH = 2.5


class Mark(NamedTuple):
    """The sums of an epoch when `step` updates of the run were made."""

    loss_sum: Scalar
    num_images: int
    seconds: float
    step: int


class StepCurves:
    """The curves of a run by step: a point every few updates, of the means since the one before.

    A point is logged when its loss has come from the device, which nothing waits for. The first
    one after a resume is of the updates since then.
    """

    def __init__(self, state: TrainState, tracker: Tracker) -> None:
        self.state, self.tracker = state, tracker
        every = state.config.run.log_every_steps
        self.every = max(1, state.loaders.sampler.num_updates // POINTS) if every is None else every
        self._meter, self._last = state.meter, self._mark()
        self._waiting: list[tuple[Mark, Mark]] = []

    def _mark(self) -> Mark:
        meter, device = self.state.meter, self.state.compute.device
        return Mark(
            Scalar(meter.loss_sum, device), meter.num_images, meter.seconds, self.state.step
        )

    def after_update(self) -> None:
        """Take a point if it is time to, and log those whose loss has come."""
        state = self.state
        if not self.every:
            return
        if self._meter is not state.meter:
            # an epoch has begun, or the run went back to a checkpoint
            is_first = state.progress.update == 1
            self._meter = state.meter
            self._last = (
                Mark(Scalar(torch.zeros(()), CPU), 0, 0.0, state.step - 1)
                if is_first
                else self._mark()
            )
        if state.step % self.every == 0 and state.step > self._last.step:
            mark = self._mark()
            self._waiting.append((self._last, mark))
            self._last = mark
        while self._waiting and self._waiting[0][1].loss_sum.has_come:
            self._log(*self._waiting.pop(0))

    def flush(self) -> None:
        """Log the points that are left; waits for the device."""
        while self._waiting:
            self._log(*self._waiting.pop(0))

    def _log(self, before: Mark, after: Mark) -> None:
        num_images = after.num_images - before.num_images
        batch_size = self.state.loaders.sampler.batch_size
        figures = {
            "train/lr_step": self.state.lr_at(after.step - 1),
            "speed/images_per_s_step": (after.step - before.step)
            * batch_size
            / max(after.seconds - before.seconds, 1e-9),
        }
        loss = (after.loss_sum.item() - before.loss_sum.item()) / max(num_images, 1)
        # there is none where all updates were left out, or where the run is about to fail
        if num_images and math.isfinite(loss):
            figures = {"train/loss_step": loss} | figures
        self.tracker.log_step(after.step, figures)


class SilentReporter:
    """The reporter of a rank that is not the main one: it writes and prints nothing."""

    def line(self, text: str) -> None:
        """Print one line."""

    def show(self, batches: Iterable, label: console.Label, total: int) -> Iterable:
        """Pass batches on, and show how far they are."""
        return console.no_progress(batches, label, total)

    def update(self) -> None:
        """Report an update."""

    def epoch(self, metrics: dict[str, float], best: Predictions | None = None) -> None:
        """Log an epoch. Comes before saving: a crash repeats an epoch, skips none.

        `best` are the answers to the validation images if it is the best epoch so far.
        """

    def close(self) -> dict[str, Any]:
        """Write and print the results, and return them."""
        return {}


class Reporter(SilentReporter):
    """The reporter of the main rank; `reporting` makes it."""

    def __init__(
        self,
        state: TrainState,
        folder: Path,
        overrides: tuple[str, ...] | None,
        group: str | None,
    ) -> None:
        self.state, self.folder = state, folder
        config = state.config
        self.layers = profile_layers(state.model, config.data.resolution)
        self.blocks = sum_blocks(state.model, self.layers)
        madds = sum(each.madds for each in self.layers)
        self.profile = Profile(madds, num_params(state.model))
        self.comparison = compare(
            config.model,
            config.data,
            state.num_classes,
            num_images=len(state.loaders.val_images),
            is_int8=config.train.quantise is not None,
        )
        self.tracker = Tracker(
            folder,
            config=resolved_config(state),
            title=run_label(config, overrides or ()),
            mode=config.run.wandb,
            project=config.run.wandb_project,
            group=group,
            tags=(config.model.title, *learned_overrides(overrides or ())),
            overrides=overrides,
        )
        self._spoke_at = time.monotonic()
        # images/s of the fastest epoch so far
        self._fastest = 0.0
        self.tracer: Any = None
        if config.run.profile:
            from mobilenet_exp.training.tracing import Tracer

            self.tracer = Tracer(config.run.profile, folder, state.compute.device)
        self._curves = Throttle(self._draw_curves) if config.run.pictures else None
        self.steps = StepCurves(state, self.tracker)

    def announce(self, lines: Iterable[str]) -> None:
        """Write what is known before the first update, and print where the run lives."""
        state, tracker, config = self.state, self.tracker, self.state.config
        tracker.write("config.yaml", to_yaml(config))
        tracker.keep_until(state.progress.epoch)
        device = state.compute.describe(state.world.size)
        if workers := state.loaders.train.workers:
            of_these = f"{state.loaders.val.workers} for evaluation"
            device += f", {plural(workers, 'loading process')}, {of_these}"
            device += " each" if state.world.size > 1 else ""
        tracker.set_summary(
            self.profile.summary() | self.comparison.summary() | {"run/device": device}
        )
        resumed = state.progress.describe()
        console.line(f"{self.folder} on {device}" + (f", resumed {resumed}" if resumed else ""))
        madds, params = self.profile.madds / 1e6, self.profile.params / 1e6
        console.line(f"{madds:.2f} M madds, {params:.3f} M params")
        console.line(tracker.status)
        for line in (*state.notes, *lines):
            console.line(line)
        if config.run.deterministic:
            console.line("using deterministic algorithms (slower on a GPU)")
        for name, kind, costs in (
            ("blocks", BlockCost, self.blocks),
            ("layers", LayerCost, self.layers),
        ):
            columns, rows = list(kind._fields), [list(each) for each in costs]
            tracker.write(f"{name}.csv", as_csv([columns, *rows]))
            tracker.table(f"model/{name}", columns, rows)

    def line(self, text: str) -> None:
        console.line(text)

    def show(self, batches: Iterable, label: console.Label, total: int) -> Iterable:
        if self.state.config.run.pictures and self.state.step == 0:
            batches = self._drawing_first(batches)
        return console.progress(batches, label, total)

    def _drawing_first(self, batches: Iterable) -> Iterator:
        """Pass batches on, and draw the first one as the network gets it: its zero is grey."""
        for number, batch in enumerate(batches):
            if number == 0:
                # now: the reader uses its memory again
                images = batch[0][:SHOWN].float().cpu()
                with console.best_effort(FIRST_BATCH):
                    path = self.tracker.draw(FIRST_BATCH, partial(_draw_batch, images))
                    self.tracker.picture("train/first_batch", path)
            yield batch

    def update(self) -> None:
        self.steps.after_update()
        if self.tracer and (traced := self.tracer.after_update()):
            console.line(traced)
        state, every = self.state, self.state.config.run.log_every_minutes
        is_due = every is not None and time.monotonic() - self._spoke_at >= 60 * every
        # a terminal has a bar
        if not is_due or console.is_terminal():
            return
        self._spoke_at = time.monotonic()
        loss = state.meter.loss_sum.item() / max(state.meter.num_images, 1)
        console.line(
            f"epoch {state.progress.epoch + 1}/{state.config.train.epochs}, "
            f"update {state.progress.update} of {state.loaders.sampler.num_updates}: "
            f"loss {loss:.3f}, {state.describe_pace()}"
        )

    def epoch(self, metrics: dict[str, float], best: Predictions | None = None) -> None:
        state, progress = self.state, self.state.progress
        self.steps.flush()
        self.tracker.log(progress.epoch, metrics)
        if best is not None:
            with console.best_effort(f"{BEST}/"):
                is_imagenet = state.config.data.is_imagenet
                titles = class_titles(
                    state.loaders.classes, state.num_classes, is_imagenet=is_imagenet
                )
                for name, text in answer_files(state.loaders.val_images, best, titles).items():
                    self.tracker.write(f"{BEST}/{name}", text)
        if self._curves:
            self._curves.do()
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
        console.line(terminal.epoch_line(progress.epoch, state.config.train.epochs, metrics))
        speed = metrics.get("speed/images_per_s", self._fastest)
        self._fastest = max(self._fastest, speed)
        if line := slow_line(speed, self._fastest, state.compute):
            console.line(line)
        for line in terminal.note_lines(metrics | {"epoch": progress.epoch}, progress.left_out):
            console.line(line)

    def _draw_curves(self) -> None:
        row = self.comparison.paper if isinstance(self.comparison, Comparison) else None
        paper = (f"{row.source}, {row.top1:g} %", row.top1) if row and row.top1 else None
        rows, title = self.tracker.rows("epoch"), run_title(self.state.config)
        with console.best_effort(CURVES):
            self.tracker.draw(CURVES, lambda path: draw_curves(rows, path, title, paper))

    def close(self) -> dict[str, Any]:
        state, tracker, progress = self.state, self.tracker, self.state.progress
        run = state.config.run
        results = self._results()
        # before the run counts as finished: one that is cut off here does it again
        if self._curves:
            self._curves.do_now()
        show_answers(tracker, BEST, "val", state.loaders.val_images, draws=run.pictures)
        columns, rows = self.comparison.table(self.profile, progress.top1, progress.top5)
        tracker.table("paper/table", columns, rows)
        if run.wandb_artifacts:
            for alias in ("best", "last"):
                tracker.artifact(self.folder / "checkpoints" / f"{alias}.pt", alias)
        tracker.write("results.json", json.dumps(results, indent=2) + "\n")
        terminal.print_comparison(results)
        terminal.print_next(self.folder, run.root)
        return results

    def _results(self) -> dict[str, Any]:
        """Return the content of results.json."""
        state, config, progress = self.state, self.state.config, self.state.progress
        return {
            "name": self.folder.name,
            "images": state.loaders.identity(),
            "data_root": _data_root(config),
            "model": config.model.title,
            "width_mult": config.model.width_mult,
            "data": config.data.name,
            "resolution": config.data.resolution,
            "num_classes": state.num_classes,
            **self.profile._asdict(),
            "top1": progress.top1,
            "top5": progress.top5,
            "best_epoch": progress.best_epoch,
            "last_top1": progress.last_top1,
            "epochs": progress.epoch,
            "seconds": round(progress.seconds, 1),
            **{"peak_memory_mb": None} | peak_memory(state.compute.device),
            "left_out": progress.left_out,
            "passed_over": state.loaders.others,
            "precision": state.compute.precision.value,
            "quantise": config.train.quantise,
            **self.comparison.to_results(progress.top1, progress.top5),
        }


@contextmanager
def reporting(
    state: TrainState,
    folder: Path,
    overrides: tuple[str, ...] | None = None,
    group: str | None = None,
    lines: Iterable[str] = (),
) -> Iterator[Reporter]:
    """Announce a run and report about it, to its end.

    `lines` are printed after the announcement; `overrides` and `group` are those of `train`.
    """
    reporter = Reporter(state, folder, overrides, group)
    with reporter.tracker:
        reporter.announce(lines)
        try:
            yield reporter
        except Preempted:
            reporter.steps.flush()
            raise
        finally:
            # of a run that was too short for it
            if reporter.tracer and (traced := reporter.tracer.close()):
                console.line(traced)


def slow_line(speed: float, fastest: float, compute: Compute) -> str:
    """Say what to do about an epoch much slower than another on a CPU's several threads."""
    is_alone = compute.device.type != "cpu" or torch.get_num_threads() == 1
    if is_alone or speed * MUCH_SLOWER > fastest:
        return ""
    return (
        f"  the fastest epoch ran at {fastest:.0f} images/s: other programs may use the cores, "
        "of which run.threads=1 suffers least"
    )


def resolved_config(state: TrainState) -> dict[str, Any]:
    """Return the configuration with the values that run in place of those left open."""
    resolved = asdict(state.config)
    resolved["model"]["num_classes"] = state.num_classes
    data = resolved["data"]
    data["train_resolution"] = data["train_resolution"] or data["resolution"]
    data["batch_size"] = state.loaders.sampler.batch_size
    resolved["run"] |= {
        "device": state.compute.device.type,
        "devices": state.world.size,
        "workers": state.loaders.train.workers,
        "threads": torch.get_num_threads(),
        "precision": state.compute.precision.value,
    }
    return resolved


def load_results(config: Config, folder: Path) -> dict[str, Any] | None:
    """Return the results of a run that is done, without a look at its pixels; else None.

    The whole configuration must agree, not the run's name alone, and so must the images: their
    classes, counts and names of files. Raises InputError where they do not, and for a damaged
    file.
    """
    path = folder / "results.json"
    if not path.exists():
        return None
    try:
        stored = read_config((folder / "config.yaml").read_text())
    except (OSError, ValueError) as error:
        problem = f"config.yaml beside {path} is missing or damaged"
        way_out = "delete results.json and repeat the command to rebuild both"
        raise InputError("run.root", config.run.root, f"{problem}; {way_out}") from error
    check_config(config, stored, path)
    try:
        results = json.loads(path.read_text())
        images, _ = results["images"], results["model"]
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{path} is damaged; delete it and repeat the command to rebuild it"
        raise InputError("run.root", config.run.root, problem) from error
    results = {"data_root": None, "peak_memory_mb": None, "precision": "float32", **results}
    root, then = _data_root(config), results["data_root"]
    is_in_place = root == then
    if is_in_place and (root is None or "names_sha256" not in images):
        return results
    try:
        # an address is read when its images are
        ours = None if is_in_place and "://" in str(root) else image_identity(config)
    except InputError:
        if not is_in_place:
            raise
        # they are gone, as from a disk that is not mounted
        ours = None
    if ours is None:
        console.line(f"{root} was not looked at: the images may have changed")
    else:
        check_images(config, ours, images, path, then)
    return results


def print_results(results: dict[str, Any], config: Config, folder: Path) -> None:
    """Say that a run is done, and print its table; `wandb agent`'s run gets its results."""
    if is_under_agent():
        tracker = Tracker(
            folder,
            config=asdict(config),
            title=run_label(config, ()),
            mode=config.run.wandb,
            project=config.run.wandb_project,
            # nothing is computed
            is_start=False,
        )
        with tracker:
            tracker.repeat()
            keys = ("top1", "top5", "epoch")
            best = (results["top1"], results["top5"], results["best_epoch"])
            figures = {f"best/{key}": value for key, value in zip(keys, best, strict=True)}
            figures |= {f"model/{key}": results[key] for key in ("madds", "params")}
            tracker.set_summary(figures)
    console.line(f"{folder} is already finished; train.seed=N starts a new run; its results:")
    if config.run.precision not in ("auto", results["precision"]):
        ignored = f"run.precision={config.run.precision} is not looked at"
        console.line(
            f"{ignored}: it was computed in {results['precision']}; run.root=... computes it anew"
        )
    terminal.print_comparison(results)


def _data_root(config: Config) -> str | None:
    root = config.data.root
    return root if root is None or "://" in root else str(Path(root).resolve())


def _draw_batch(images: Tensor, path: Path) -> None:
    shown = 0.5 + images / (2 * REACH)
    if shown.shape[-1] > SIDE:
        shown = nn.functional.interpolate(shown, size=SIDE, mode="area")
    else:
        # small ones by whole pixels
        shown = nn.functional.interpolate(shown, scale_factor=float(SIDE // shown.shape[-1]))
    save_image(make_grid(shown, nrow=ROW, pad_value=1.0), path, format="png")
