"""What an evaluation leaves behind: its name, its results, its tables as files."""

import hashlib
import json
from dataclasses import MISSING, asdict
from pathlib import Path
from typing import Any

from mobilenet_exp.config.schema import EvalImages
from mobilenet_exp.core.text import as_csv
from mobilenet_exp.evaluation import metrics
from mobilenet_exp.evaluation.answers import answer_files, class_titles
from mobilenet_exp.evaluation.scoring import EvalResult
from mobilenet_exp.models.profiling import Profile
from mobilenet_exp.tracking.sweeps import file_name
from mobilenet_exp.weights.load import LoadedModel


def eval_name(loaded: LoadedModel, data: EvalImages, precision: str) -> str:
    """Return the evaluation's name: a readable head, and a hash of weights and images."""
    identity: list[Any] = [
        loaded.digest,
        asdict(loaded.config),
        loaded.variant,
        _named(data),
    ]
    if precision != "float32":
        identity.append(precision)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    if loaded.folder:
        return f"{Path(loaded.origin).stem}-{data.name}-r{data.resolution}-{digest}"
    net = f"{loaded.config.title}-w{loaded.config.width_mult:g}"
    return f"eval-{net}-r{data.resolution}-{data.name}-{digest}"


def photos_name(loaded: LoadedModel, path: str) -> str:
    """Return the name of a folder for what a network sees on photos."""
    where = Path(path).resolve()
    identity = json.dumps([loaded.digest, str(where)])
    digest = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"photos-{file_name([where.name])}-{digest}"


def _named(data: EvalImages) -> dict[str, Any]:
    """Return what names the images of an evaluation: not how they are read, nor new defaults."""
    found = {**asdict(data), "batch_size": None, "on_bad_image": None}
    later = {"exif": "ignore", "resize": "fast", "val_share": None, "val_seed": 0}
    return {key: value for key, value in found.items() if value != later.get(key, MISSING)}


def eval_label(loaded: LoadedModel, data: EvalImages) -> str:
    """Return the evaluation's name for people: net, width, side, data, and which weights."""
    net = f"{loaded.config.title}-w{loaded.config.width_mult:g}-r{data.resolution}-{data.name}"
    label = f"eval {net} {Path(loaded.origin).name}"
    return label if loaded.epoch is None else f"{label} epoch {loaded.epoch}"


def eval_results(
    loaded: LoadedModel, data: EvalImages, found: EvalResult, profile: Profile
) -> dict[str, Any]:
    """Return the evaluation's own entries of results.json."""
    classes = _titles(data, found)
    return {
        "weights": loaded.origin,
        "weights_notes": list(loaded.notes),
        "dialect": loaded.variant,
        "model": loaded.config.title,
        "width_mult": loaded.config.width_mult,
        "data": data.name,
        "num_classes": loaded.num_classes,
        "preprocessing": asdict(loaded.preprocessing),
        **profile._asdict(),
        **found.scores,
        "real": found.real,
        "num_left_out": len(found.left_out),
        "num_missing": len(found.missing),
        "left_out": found.left_out,
        "converted": found.converted,
        "others": found.others,
        "most_confused": metrics.most_confused(found.confusion, classes),
        "per_class": metrics.per_class(found.confusion, classes),
    }


def _titles(data: EvalImages, found: EvalResult) -> list[str]:
    return class_titles(found.images.classes, found.num_classes, is_imagenet=data.is_imagenet)


def files_of(data: EvalImages, found: EvalResult) -> dict[str, str]:
    """Return the evaluation's tables as the text of files, by name."""
    noted = [
        [state, name, reason]
        for state, images in (
            ("left out", found.left_out),
            ("converted", found.converted),
            ("no image", found.others),
            ("missing", dict.fromkeys(found.missing, "has a label but is not in the folder")),
        )
        for name, reason in images.items()
    ]
    tables = answer_files(found.images.images, found.answers, _titles(data, found))
    return {"odd_images.csv": as_csv([["state", "image", "reason"], *noted]), **tables}
