"""Training, evaluation and timing: the one place where the parts meet. Knows no Hydra."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mobilenet_exp.config.convert import to_dict
from mobilenet_exp.config.schema import BenchConfig, DataConfig, EvalConfig
from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.deploy.latency import measure_latency
from mobilenet_exp.evaluation.photos import name_photos
from mobilenet_exp.evaluation.scoring import (
    Outcome,
    eval_name,
    eval_results,
    files_of,
    score,
)
from mobilenet_exp.machine.device import select_device
from mobilenet_exp.machine.distributed import joined
from mobilenet_exp.models.profiling import profile_model
from mobilenet_exp.papers.comparison import compare
from mobilenet_exp.tracking import terminal as reports
from mobilenet_exp.tracking.tracker import Tracker, tags_of
from mobilenet_exp.training.job import train
from mobilenet_exp.weights.loaded import Subject, eval_data, load_subject

__all__ = ["bench", "evaluate", "train"]


def evaluate(config: EvalConfig, *, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Score a checkpoint or weights on a data set, or name photos; see conf/eval.yaml.

    Scores go to results.json and tables beside it: in `eval/` of the checkpoint's run,
    or in a folder of their own under `run.root`. Under torchrun every process scores its
    share, and rank 0 writes. Returns the content of results.json, for photos the
    numbers left out and missing, on other ranks none.
    """
    device = select_device(config.run.device)
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
        tags=(subject.config.name, *tags_of(overrides)),
        job_type="eval",
        run_id=f"{subject.folder.name}-{name}" if subject.folder else name,
        root=Path(config.run.root),
    )
    with tracker:
        figures = {f"eval/{key}": value for key, value in outcome.scores.items()}
        tracker.summary(
            profile.summary()
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
    device = select_device(config.run.device)
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
