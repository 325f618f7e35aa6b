"""Training, evaluation and timing: the one place where the parts meet. Knows no Hydra."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mobilenet_exp import console, engine, reports
from mobilenet_exp.benchmark import measure_latency
from mobilenet_exp.checkpoint import load_checkpoint, load_weights
from mobilenet_exp.comparison import Comparison, compare
from mobilenet_exp.config import run_name, run_title, to_config, to_dict, to_yaml
from mobilenet_exp.schema import BenchConfig, Config, EvalConfig
from mobilenet_exp.data import build_val_loader
from mobilenet_exp.errors import InputError
from mobilenet_exp.profiling import Profile, profile_model
from mobilenet_exp.session import (
    Progress,
    Session,
    build_session,
    check_images,
    config_model,
    resume,
    run_epoch,
    save,
)
from mobilenet_exp.tracking import Tracker

# Words of a command that say where, not what: no tags of a run.
PLACES = ("run.", "data.root=", "hydra.")


def train(
    config: Config, *, overrides: tuple[str, ...] = (), group: str | None = None
) -> dict[str, Any]:
    """Train the configured network, or resume it, or return its result if it is done.

    Everything goes to `run.root/run_name(config)`; `overrides` become W&B's tags and
    `group` names the sweep. Returns the content of results.json. Raises InputError
    before anything is written.
    """
    folder = Path(config.run.root) / run_name(config)
    session = build_session(config)
    if (folder / "results.json").exists():
        return _finished(session, folder / "results.json")
    resume(session, folder / "checkpoints")
    profile = profile_model(session.model, config.data.resolution)
    comparison = compare(config, session.num_classes)
    tracker = Tracker(
        folder,
        config=to_dict(config),
        title=run_title(config),
        mode=config.run.wandb,
        project=config.run.wandb_project,
        group=group,
        tags=(config.model.name, *(word for word in overrides if not word.startswith(PLACES))),
    )
    with tracker:
        tracker.write("config.yaml", to_yaml(config))
        tracker.keep_until(session.progress.epoch)
        tracker.summary(_profile_summary(profile) | comparison.summary())
        reports.announce(folder, tracker.status, session.device, profile, session.progress.epoch)
        _train_epochs(session, folder, tracker, comparison)
        results = _results(session, folder.name, profile, comparison)
        tracker.write("results.json", json.dumps(results, indent=2) + "\n")
    reports.print_comparison(results)
    return results


def _finished(session: Session, path: Path) -> dict[str, Any]:
    """Return the results of a run that is done, if they are of the same images."""
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


def _train_epochs(session: Session, folder: Path, tracker: Tracker, comparison: Comparison) -> None:
    """Run the epochs that are left. Logs, then saves: a crash repeats an epoch, skips none."""
    epochs, progress = session.config.train.epochs, session.progress
    while progress.epoch < epochs:
        metrics, is_best = run_epoch(session, console.progress)
        tracker.log(progress.epoch, metrics)
        tracker.summary(_best_summary(progress, comparison))
        console.line(reports.epoch_line(progress.epoch, epochs, metrics))
        save(session, folder / "checkpoints", is_best=is_best)


def evaluate(config: EvalConfig) -> dict[str, float]:
    """Score a run's checkpoint on its own evaluation images; needs nothing but the path.

    `data.root` and `data.batch_size` replace the checkpoint's where given. Returns
    `top1`, `top5`, `loss`, `num_images`.
    """
    state = load_checkpoint(config.checkpoint)
    trained = to_config(state["config"])
    given = {key: value for key, value in asdict(config.data).items() if value is not None}
    trained = replace(trained, data=replace(trained.data, **given), run=config.run)
    device = engine.select_device(config.run.device)
    loader, classes = build_val_loader(
        trained.data, workers=config.run.workers, pin_memory=device.type == "cuda"
    )
    if classes != state["classes"]:
        allowed = "holds other classes than the checkpoint learned"
        raise InputError("data.root", trained.data.root, allowed)
    model = config_model(trained, state["num_classes"]).to(device)
    load_weights(model, state, config.checkpoint)
    profile = profile_model(model, trained.data.resolution)
    batches = console.progress(loader, "evaluate", len(loader))
    scores = engine.evaluate(model, batches, device)
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


def _profile_summary(profile: Profile) -> dict[str, float]:
    return {
        "model/madds": profile.madds,
        "model/params": profile.params,
        "model/madds_m": profile.madds / 1e6,
        "model/params_m": profile.params / 1e6,
    }


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
