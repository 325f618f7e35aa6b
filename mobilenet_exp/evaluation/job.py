"""Runs an evaluation, from its configuration to its results."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from mobilenet_exp.config.convert import check_effects
from mobilenet_exp.config.identity import learned_overrides
from mobilenet_exp.config.schema import EvalConfig, EvalImages, Preprocessing
from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.files import check_folder, write_file
from mobilenet_exp.core.registry import import_modules
from mobilenet_exp.evaluation import tables
from mobilenet_exp.evaluation.answers import PREDICTIONS
from mobilenet_exp.evaluation.classify import classify_photos, photos_csv
from mobilenet_exp.evaluation.metrics import METRICS
from mobilenet_exp.evaluation.results import (
    eval_label,
    eval_name,
    eval_results,
    files_of,
    photos_name,
)
from mobilenet_exp.evaluation.scoring import EvalResult, eval_data, score
from mobilenet_exp.evaluation.showing import show_answers
from mobilenet_exp.machine.compute import Compute, Precision, keeping_threads, set_up
from mobilenet_exp.machine.distributed import joined
from mobilenet_exp.machine.launch_env import this_rank
from mobilenet_exp.models.fake_quantized import check_device
from mobilenet_exp.models.profiling import Profile
from mobilenet_exp.papers.comparison import Comparison, NoPaperRow, compare
from mobilenet_exp.tracking.tracker import Tracker
from mobilenet_exp.weights.load import LoadedModel, load_model
from mobilenet_exp.weights.runtime_files import ExportedModel


@keeping_threads()
def evaluate(config: EvalConfig, *, overrides: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Score a checkpoint or weights on a data set, or classify photos; see conf/eval.yaml.

    Scores go to results.json and tables beside it: in `eval/` of the checkpoint's run,
    or in a folder of their own under `run.root`. Under torchrun every process scores its
    share, and rank 0 writes. Returns the content of results.json in every process; for
    photos only the numbers of images left out and missing.
    """
    import_modules(config.run.imports)
    for name in config.run.metrics:
        METRICS.get(name)
    compute, _ = set_up(config.run, half=False, leaves_busy_cores=this_rank().size == 1)
    # name and results of the evaluation need the values that are used, not `auto`
    resolved = {"precision": compute.precision.value, "device": compute.device.type}
    config = replace(config, run=replace(config.run, **resolved))
    if config.image is not None:
        return _classify(_load(config, compute), config.image, config, compute)
    with joined(compute.device) as world:
        loaded = _load(config, compute)
        data = eval_data(config.data, loaded)
        # of a run's own data, too, whose name the command need not give
        resolved_data: Any = data
        check_effects(replace(config, data=resolved_data), overrides or ())
        folder = _folder(loaded, data, config)
        show = console.no_progress
        if world.is_main:
            # before the work, which may take hours
            check_folder(folder, *_root_key(config))
            show = console.progress
            _announce(loaded, compute.describe(world.size))
        found = score(loaded, data, config, compute=compute, world=world, show=show)
        # the others wait until everything is written
        results = world.on_main(lambda: _report(loaded, data, config, found, folder, overrides))
    return results


def _folder(loaded: LoadedModel, data: EvalImages, config: EvalConfig) -> Path:
    """Return where the results go: beside the run that is scored, or in a folder of their own."""
    name = eval_name(loaded, data, config.run.precision)
    return loaded.folder / "eval" / name if loaded.folder else Path(config.run.root) / name


def _root_key(config: EvalConfig) -> tuple[str, str]:
    """Return the key that says where results go, and its value."""
    if config.checkpoint is not None:
        return "checkpoint", config.checkpoint
    return "run.root", config.run.root


def _load(config: EvalConfig, compute: Compute) -> LoadedModel:
    precision = compute.precision
    loaded = load_model(config)
    # the preprocessing is the network's, except for what the command sets
    keys = [entry.name for entry in fields(Preprocessing)]
    given: dict[str, Any] = {
        key: value for key in keys if (value := getattr(config.data, key)) is not None
    }
    loaded = replace(loaded, preprocessing=replace(loaded.preprocessing, **given))
    if isinstance(loaded.model, ExportedModel) and precision is not Precision.FLOAT32:
        raise InputError(
            "run.precision", str(precision), "an exported file has a precision of its own"
        )
    if loaded.fake_quantized:
        check_device(compute.device)
    if loaded.fake_quantized and precision in (Precision.BFLOAT16, Precision.FLOAT16):
        raise InputError(
            "run.precision",
            str(precision),
            "the network was trained with train.quantise, which needs float32",
        )
    return loaded


def _announce(loaded: LoadedModel, device: str) -> None:
    notes = (*loaded.notes, loaded.preprocessing.describe(), f"on {device}")
    tables.print_loaded(loaded.origin, notes)


def _classify(
    loaded: LoadedModel, image: str, config: EvalConfig, compute: Compute
) -> dict[str, Any]:
    """Print the network's answers to photos; for a folder, also write them to a file."""
    if config.data.name is not None:
        raise InputError("data", config.data.name, "cannot be combined with image=")
    folder = Path(config.run.root) / photos_name(loaded, image)
    if Path(image).is_dir():
        check_folder(folder, "run.root", config.run.root)
    answers, unread = classify_photos(loaded, image, compute.device, compute.precision)
    _announce(loaded, compute.describe())
    tables.print_photos(answers, unread)
    if Path(image).is_dir():
        write_file(folder / PREDICTIONS, photos_csv(answers, unread))
        console.line(f"all five answers of each in {folder / PREDICTIONS}")
    return {"num_left_out": len(unread), "num_missing": 0}


def _report(
    loaded: LoadedModel,
    data: EvalImages,
    config: EvalConfig,
    found: EvalResult,
    folder: Path,
    overrides: tuple[str, ...] | None,
) -> dict[str, Any]:
    """Write and print what an evaluation found, and log it to W&B."""
    name = folder.name
    profile = loaded.profile(data.resolution)
    comparison = compare(
        loaded.config,
        data,
        loaded.num_classes,
        source=loaded.source,
        num_images=int(found.scores["num_images"]),
        is_int8=loaded.is_int8,
    )
    results = eval_results(loaded, data, found, profile)
    results |= {"name": name, "precision": config.run.precision} | comparison.to_results(
        results["top1"], results["top5"]
    )
    tracker = Tracker(
        folder,
        config=asdict(config)
        | {
            "data": asdict(data),
            "model": asdict(loaded.config) | {"num_classes": loaded.num_classes},
        },
        title=eval_label(loaded, data),
        # beside the run that it scores, or other weights of its network
        group=loaded.folder.name if loaded.folder else loaded.config.name,
        mode=config.run.wandb,
        project=config.run.wandb_project,
        tags=(loaded.config.name, *learned_overrides(overrides or ())),
        overrides=overrides,
        job_type="eval",
        run_id=f"{loaded.folder.name}-{name}" if loaded.folder else name,
        root=Path(config.run.root),
    )
    try:
        _write(tracker, results, found, data, comparison, profile, config)
    except Exception:
        # what was computed is not lost
        tables.print_evaluation(results, folder, "not written", config.run.metrics)
        raise
    tables.print_evaluation(results, folder, tracker.status, config.run.metrics)
    return results


def _write(
    tracker: Tracker,
    results: dict[str, Any],
    found: EvalResult,
    data: EvalImages,
    comparison: Comparison | NoPaperRow,
    profile: Profile,
    config: EvalConfig,
) -> None:
    """Write an evaluation's files, and log it to W&B."""
    with tracker:
        figures = {f"eval/{key}": value for key, value in found.scores.items()}
        figures |= {f"eval/real_{key}": value for key, value in (found.real or {}).items()}
        figures["eval/num_left_out"] = results["num_left_out"]
        tracker.set_summary(
            profile.summary() | comparison.summary(results["top1"], results["top5"]) | figures
        )
        for file, text in files_of(data, found).items():
            tracker.write(file, text)
        tracker.write("results.json", json.dumps(results, indent=2) + "\n")
        show_answers(tracker, "", "eval", found.images.images, draws=config.run.pictures)
        tracker.table("paper/table", *comparison.table(profile, results["top1"], results["top5"]))
