"""Training, evaluation and timing: the one place where the parts meet. Knows no Hydra."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobilenet_exp import console, engine, reports
from mobilenet_exp.benchmark import measure_latency
from mobilenet_exp.checkpoint import load_checkpoint, save_checkpoint
from mobilenet_exp.comparison import Comparison, compare
from mobilenet_exp.config import (
    BenchConfig,
    Config,
    EvalConfig,
    run_name,
    run_title,
    to_config,
    to_dict,
    to_yaml,
)
from mobilenet_exp.data import Loaders, build_loaders
from mobilenet_exp.errors import InputError
from mobilenet_exp.models import MobileNet, build_model
from mobilenet_exp.optim import build_optimizer
from mobilenet_exp.profiling import Profile, profile_model
from mobilenet_exp.schedule import build_schedule
from mobilenet_exp.tracking import Tracker


@dataclass
class Progress:
    """How far a run has come; saved in every checkpoint."""

    # epochs completed, updates made, seconds spent
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    # the best epoch so far and its accuracy in percent; 0: none yet
    best_epoch: int = 0
    top1: float = 0.0
    top5: float = 0.0
    # accuracy after the last epoch, whether or not it was the best
    last_top1: float = 0.0


@dataclass
class Parts:
    """What a configuration builds; only weights and `progress` change during a run."""

    config: Config
    device: torch.device
    loaders: Loaders
    num_classes: int
    model: MobileNet
    profile: Profile
    comparison: Comparison
    optimizer: torch.optim.Optimizer
    lr_at: Callable[[int], float]
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    progress: Progress


def train(
    config: Config, *, overrides: tuple[str, ...] = (), group: str | None = None
) -> dict[str, Any]:
    """Train the configured network, or resume it, or return its result if it is done.

    Everything goes to `run.root/run_name(config)`; `overrides` become W&B's tags and
    `group` names the sweep. Returns the content of results.json. Raises InputError
    before anything is written.
    """
    folder = Path(config.run.root) / run_name(config)
    finished = folder / "results.json"
    if finished.exists():
        results = json.loads(finished.read_text())
        console.line(f"{folder} is finished; another seed (train.seed=N) is another run")
        reports.print_comparison(results)
        return results
    parts = _build(config, folder)
    tracker = Tracker(
        folder,
        config=to_dict(config),
        title=run_title(config),
        mode=config.run.wandb,
        project=config.run.wandb_project,
        group=group,
        tags=(config.model.name, *overrides),
    )
    with tracker:
        tracker.write("config.yaml", to_yaml(config))
        tracker.keep_until(parts.progress.epoch)
        tracker.summary(_model_summary(parts.profile) | parts.comparison.summary())
        reports.announce(folder, tracker.status, parts.device, parts.profile, parts.progress.epoch)
        while parts.progress.epoch < config.train.epochs:
            row, is_best = _run_epoch(parts)
            tracker.log(parts.progress.epoch, row)
            tracker.summary(_best_summary(parts))
            console.line(reports.epoch_line(parts.progress.epoch, config.train.epochs, row))
            _save(folder / "checkpoints", parts, is_best)
        results = _results(folder, parts)
        tracker.write("results.json", json.dumps(results, indent=2) + "\n")
    reports.print_comparison(results)
    return results


def evaluate(config: EvalConfig) -> dict[str, float]:
    """Score a run's checkpoint on its own evaluation images; needs nothing but the path.

    `data.root` and `data.batch_size` replace the checkpoint's where given. Returns
    `top1`, `top5`, `loss`, `num_images`.
    """
    state = load_checkpoint(config.checkpoint)
    trained = to_config(state["config"])
    given = {key: value for key, value in asdict(config.data).items() if value is not None}
    trained.data = replace(trained.data, **given)
    trained.run = config.run
    device = engine.select_device(trained.run.device)
    loaders = _loaders(trained, device)
    if loaders.classes != state["classes"]:
        raise InputError(
            "data.root", trained.data.root, "holds other classes than the checkpoint learned"
        )
    model = _model(trained, state["num_classes"]).to(device)
    model.load_state_dict(state["model"])
    profile = profile_model(model, trained.data.resolution)
    scores = engine.evaluate(
        model, console.progress(loaders.val, "evaluate", len(loaders.val)), device
    )
    reports.print_evaluation(config.checkpoint, trained, state["epoch"], profile, scores)
    return scores


def bench(config: BenchConfig) -> list[dict[str, Any]]:
    """Time the configured networks side by side and print the table; return its rows."""
    device = engine.select_device(config.run.device)
    rows = measure_latency(
        config.models,
        config.batch_sizes,
        resolution=config.resolution,
        warmup=config.warmup,
        rounds=config.rounds,
        device=device,
        progress=console.progress,
    )
    reports.print_latency(rows, config.resolution, config.rounds, device)
    return rows


def _build(config: Config, folder: Path) -> Parts:
    device = engine.select_device(config.run.device)
    loaders = _loaders(config, device)
    num_classes = config.model.num_classes or len(loaders.classes)
    if num_classes < len(loaders.classes):
        raise InputError(
            "model.num_classes",
            num_classes,
            f"{config.data.name} has {len(loaders.classes)} classes; must be at least that",
        )
    torch.manual_seed(config.train.seed)
    model = _model(config, num_classes).to(device)
    parts = Parts(
        config=config,
        device=device,
        loaders=loaders,
        num_classes=num_classes,
        model=model,
        profile=profile_model(model, config.data.resolution),
        comparison=compare(config, num_classes),
        optimizer=build_optimizer(model, **asdict(config.optimizer)),
        lr_at=build_schedule(
            **asdict(config.schedule),
            lr=config.optimizer.lr,
            epochs=config.train.epochs,
            steps_per_epoch=len(loaders.train),
        ),
        loss_fn=nn.CrossEntropyLoss(label_smoothing=config.train.label_smoothing),
        progress=Progress(),
    )
    last = folder / "checkpoints" / "last.pt"
    if last.exists():
        state = load_checkpoint(last)
        model.load_state_dict(state["model"])
        parts.optimizer.load_state_dict(state["optimizer"])
        parts.progress = Progress(**state["progress"])
    return parts


def _loaders(config: Config, device: torch.device) -> Loaders:
    return build_loaders(
        config.data,
        seed=config.train.seed,
        workers=config.run.workers,
        pin_memory=device.type == "cuda",
    )


def _model(config: Config, num_classes: int) -> MobileNet:
    options = asdict(config.model) | {"num_classes": num_classes}
    args = options.pop("args")
    return build_model(**options, **args)


def _run_epoch(parts: Parts) -> tuple[dict[str, float], bool]:
    """Train and evaluate one epoch; return its metrics and whether it is the best."""
    config, progress = parts.config, parts.progress
    started = time.perf_counter()
    epoch = progress.epoch + 1
    # dropout and augmentation follow from (seed, epoch), so a resumed run repeats them
    torch.manual_seed(config.train.seed * 1_000_003 + epoch)
    parts.loaders.train_sampler.set_epoch(epoch)
    batches = console.progress(parts.loaders.train, f"epoch {epoch}", len(parts.loaders.train))
    learned = engine.train_one_epoch(
        parts.model,
        batches,
        parts.optimizer,
        parts.lr_at,
        loss_fn=parts.loss_fn,
        device=parts.device,
        first_step=progress.step,
    )
    if config.train.precise_bn_batches:
        engine.reestimate_bn(
            parts.model,
            parts.loaders.train,
            parts.device,
            num_batches=config.train.precise_bn_batches,
        )
    scores = engine.evaluate(parts.model, parts.loaders.val, parts.device)
    progress.epoch = epoch
    progress.step += learned.pop("num_steps")
    progress.seconds += time.perf_counter() - started
    progress.last_top1 = scores["top1"]
    is_best = progress.best_epoch == 0 or scores["top1"] > progress.top1
    if is_best:
        progress.best_epoch = epoch
        progress.top1, progress.top5 = scores["top1"], scores["top5"]
    row = {f"train/{key}": value for key, value in learned.items()}
    return row | {f"val/{key}": value for key, value in scores.items()}, is_best


def _save(folder: Path, parts: Parts, is_best: bool) -> None:
    state = {
        "config": to_dict(parts.config),
        "classes": parts.loaders.classes,
        "num_classes": parts.num_classes,
        "epoch": parts.progress.epoch,
        "progress": asdict(parts.progress),
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
    }
    if is_best:
        save_checkpoint(folder / "best.pt", state)
    save_checkpoint(folder / "last.pt", state)


def _model_summary(profile: Profile) -> dict[str, float]:
    return {
        "model/madds": profile.madds,
        "model/params": profile.params,
        "model/madds_m": profile.madds / 1e6,
        "model/params_m": profile.params / 1e6,
    }


def _best_summary(parts: Parts) -> dict[str, Any]:
    progress = parts.progress
    best = {
        "best/top1": progress.top1,
        "best/top5": progress.top5,
        "best/epoch": progress.best_epoch,
    }
    return best | parts.comparison.summary(progress.top1, progress.top5)


def _results(folder: Path, parts: Parts) -> dict[str, Any]:
    config, progress = parts.config, parts.progress
    return {
        "name": folder.name,
        "model": config.model.name,
        "width_mult": config.model.width_mult,
        "data": config.data.name,
        "resolution": config.data.resolution,
        "num_classes": parts.num_classes,
        "madds": parts.profile.madds,
        "params": parts.profile.params,
        "top1": progress.top1,
        "top5": progress.top5,
        "best_epoch": progress.best_epoch,
        "last_top1": progress.last_top1,
        "epochs": progress.epoch,
        "seconds": round(progress.seconds, 1),
        **parts.comparison.to_results(progress.top1, progress.top5),
    }
