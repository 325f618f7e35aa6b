"""Training, evaluation and timing: the one place where the parts meet. Knows no Hydra."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mobilenet_exp import console, engine, reports
from mobilenet_exp.benchmark import measure_latency
from mobilenet_exp.comparison import Comparison, compare
from mobilenet_exp.config import run_name, run_title, to_dict, to_yaml
from mobilenet_exp.distributed import joined, num_launched
from mobilenet_exp.errors import InputError
from mobilenet_exp.evaluation import (
    Outcome,
    eval_name,
    eval_results,
    files_of,
    score,
)
from mobilenet_exp.photos import name_photos
from mobilenet_exp.profiling import Profile, profile_model
from mobilenet_exp.schema import BenchConfig, Config, DataConfig, EvalConfig
from mobilenet_exp.session import (
    Progress,
    Session,
    build_session,
    check_images,
    resume,
    run_epoch,
    save,
)
from mobilenet_exp.subject import Subject, eval_data, load_subject
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
    if num_launched() > 1:
        # each would write the same run
        allowed = "train.py runs in one process; torchrun is for eval.py"
        raise InputError("WORLD_SIZE", num_launched(), allowed)
    folder = Path(config.run.root) / run_name(config)
    is_new = not (folder / "checkpoints" / "last.pt").exists()
    session = build_session(config, is_new=is_new)
    if (folder / "results.json").exists():
        return _finished(session, folder / "results.json")
    resume(session, folder / "checkpoints")
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
        tags=(config.model.name, *(word for word in overrides if not word.startswith(PLACES))),
    )
    with tracker:
        tracker.write("config.yaml", to_yaml(config))
        tracker.keep_until(session.progress.epoch)
        tracker.summary(_profile_summary(profile) | comparison.summary())
        reports.announce(folder, tracker.status, session.device, profile, session.progress.epoch)
        for note in session.notes:
            console.line(note)
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


def evaluate(config: EvalConfig, *, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Score a checkpoint or weights on a data set, or name photos; see conf/eval.yaml.

    Scores go to results.json and tables beside it: in `eval/` of the checkpoint's run,
    or in a folder of their own under `run.root`. Under torchrun every process scores its
    share, and rank 0 writes. Returns the content of results.json, for photos the
    numbers left out and missing, on other ranks none.
    """
    device = engine.select_device(config.run.device)
    subject = load_subject(config, overrides)
    if config.image is not None:
        if config.data.name is not None:
            raise InputError("data", config.data.name, "is not needed with image=...")
        answers, unread = name_photos(subject, config.image, device)
        reports.print_subject(subject.origin, subject.notes, subject.preprocessing.words())
        reports.print_photos(answers, unread)
        return {"num_left_out": len(unread), "num_missing": 0}
    data = eval_data(config, subject)
    with joined(device) as team:
        show = console.progress if team.is_first else lambda batches, *_: batches
        if team.is_first:
            reports.print_subject(subject.origin, subject.notes, subject.preprocessing.words())
        outcome = score(subject, data, config, device=device, team=team, show=show)
        results = {"num_left_out": 0, "num_missing": 0}
        if team.is_first:
            results = _record(subject, data, config, outcome, overrides)
        # the others wait until all is written
        team.gather(None)
    return results


def _record(
    subject: Subject,
    data: DataConfig,
    config: EvalConfig,
    outcome: Outcome,
    overrides: tuple[str, ...],
) -> dict[str, Any]:
    """Write and print what an evaluation found, and log it to W&B."""
    name = eval_name(subject, data, config)
    folder = subject.folder / "eval" / name if subject.folder else Path(config.run.root) / name
    profile = profile_model(subject.model, data.resolution)
    comparison = compare(
        subject.config,
        data,
        subject.num_classes,
        source=subject.source,
        num_images=int(outcome.scores["num_images"]),
    )
    results = eval_results(subject, data, outcome, profile)
    results |= {"name": name} | comparison.to_results(results["top1"], results["top5"])
    tracker = Tracker(
        folder,
        config=to_dict(config) | {"data": asdict(data), "model": asdict(subject.config)},
        title=f"eval {name}",
        mode=config.run.wandb,
        project=config.run.wandb_project,
        tags=(subject.config.name, *(word for word in overrides if not word.startswith(PLACES))),
        job_type="eval",
        run_id=f"{subject.folder.name}-{name}" if subject.folder else name,
        root=Path(config.run.root),
    )
    with tracker:
        figures = {f"eval/{key}": value for key, value in outcome.scores.items()}
        tracker.summary(
            _profile_summary(profile)
            | comparison.summary(results["top1"], results["top5"])
            | figures
            | {"eval/num_left_out": results["num_left_out"]}
            | {f"eval/real_{key}": value for key, value in (outcome.real or {}).items()}
        )
        rows = [list(row.values()) for row in results["per_class"]]
        tracker.table("eval/per_class", ["class", "num_images", "top1"], rows)
        for file, text in files_of(data, outcome).items():
            tracker.write(file, text)
        tracker.write("results.json", json.dumps(results, indent=2) + "\n")
    reports.print_evaluation(results, folder, tracker.status)
    return results


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
