"""The values that each key may have, where its type alone does not settle it.

One table for everyone who checks a value: the configuration when it is composed, and the
builders, which are also called from Python without a configuration.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from mobilenet_exp.core.errors import InputError


class Range(NamedTuple):
    """A predicate, and what to tell a person whose value does not satisfy it."""

    allows: Callable[[Any], bool]
    problem: str


ABOVE_0 = Range(lambda v: 0 < v < math.inf, "must be a number > 0")
FROM_0 = Range(lambda v: 0 <= v < math.inf, "must be a number >= 0")
WHOLE = Range(lambda v: v >= 1, "must be a whole number > 0")
COUNT = Range(lambda v: v >= 0, "must be a whole number >= 0")
# of a whole that must not be reached, as a dropout probability
SHARE = Range(lambda v: 0 <= v < 1, "must be in [0, 1)")
PART = Range(lambda v: 0 <= v <= 1, "must be in [0, 1]")
PORTION = Range(lambda v: 0 < v <= 1, "must be in (0, 1]")
SIDE = Range(lambda v: 32 <= v <= 8192, "must be a whole number of pixels from 32 to 8192")
NAMED = Range(lambda v: v.strip() != "", "must not be empty")
RGB = Range(
    lambda v: len(v) == 3 and all(map(math.isfinite, v)),
    "must be three finite numbers, one per colour channel",
)


def up_to(most: int) -> Range:
    """Return the range of whole numbers from 1 to one that nobody means to exceed."""
    return Range(lambda v: 1 <= v <= most, f"must be a whole number from 1 to {most:,}")


# published networks have 0.1 to 1.4
WIDTH = Range(lambda v: 0.01 <= v <= 16, "must be a number from 0.01 to 16")


def one_of(*allowed: str) -> Range:
    """Return the range of exactly these words."""
    return Range(lambda v: v in allowed, f"not known; allowed: {', '.join(allowed)}")


BITS = Range(lambda v: v in (7, 8), "must be 7 or 8")


# One row per key; null is left to the types.
RANGES = {
    "model.width_mult": WIDTH,
    "model.num_classes": up_to(1_000_000),
    "model.dropout": SHARE,
    "model.stem_stride": Range(lambda v: v in (1, 2), "must be 1 or 2"),
    "model.bn_eps": ABOVE_0,
    "model.bn_momentum": PORTION,
    "model.stochastic_depth": SHARE,
    "optimizer.lr": ABOVE_0,
    "optimizer.weight_decay": Range(lambda v: 0 <= v <= 1000, "must be a number in [0, 1000]"),
    "schedule.warmup_epochs": FROM_0,
    "schedule.warmup_from": SHARE,
    "schedule.cooldown_epochs": FROM_0,
    "schedule.noise": Range(
        lambda v: len(v) == 2 and 0 <= v[0] <= v[1] <= 1,
        "must be two shares of the training, as [0.42,0.9]",
    ),
    "data.batch_size": up_to(1_000_000),
    "data.resolution": SIDE,
    "data.train_resolution": SIDE,
    "data.progressive_from": SIDE,
    "data.min_crop_area": PORTION,
    "data.train_interpolation": one_of("bilinear", "bicubic", "random"),
    "data.color_jitter": PART,
    "data.random_erase": PART,
    "data.erase_mode": one_of("const", "pixel"),
    "data.mixup": Range(lambda v: 0 <= v <= 1000, "must be a number in [0, 1000]"),
    "data.cutmix": Range(lambda v: 0 <= v <= 1000, "must be a number in [0, 1000]"),
    "data.mix_prob": PART,
    "data.cutmix_share": PART,
    "data.mix_off_epochs": COUNT,
    "data.repeats": up_to(1000),
    "data.crop_pct": PORTION,
    "side": SIDE,
    "form": one_of("jpeg", "raw"),
    "quality": Range(lambda v: 1 <= v <= 100, "must be a whole number from 1 to 100"),
    "shard_images": WHOLE,
    "threads": WHOLE,
    "data.interpolation": one_of("bilinear", "bicubic"),
    "data.on_bad_image": one_of("skip", "fail"),
    "data.resize": one_of("fast", "exact"),
    "data.exif": one_of("apply", "ignore", "auto"),
    "data.val_share": Range(lambda v: 0 < v < 1, "must be in (0, 1)"),
    "data.val_seed": COUNT,
    "data.mean": RGB,
    "data.std": Range(
        lambda v: len(v) == 3 and all(0 < each < math.inf for each in v),
        "must be three numbers > 0",
    ),
    "data.labels": NAMED,
    "train.epochs": up_to(1_000_000),
    "train.seed": Range(lambda v: 0 <= v < 2**32, "must be a whole number from 0 to 2**32 - 1"),
    "train.label_smoothing": SHARE,
    "train.precise_bn_batches": COUNT,
    "train.eval_every": WHOLE,
    "train.clip_grad_norm": ABOVE_0,
    "train.accumulate": up_to(1_000_000),
    "train.bn": one_of("batch", "sync", "frozen"),
    "train.trainable": one_of("all", "classifier"),
    "train.ema_decay": Range(lambda v: 0 < v < 1, "must be in (0, 1)"),
    "train.ema_every": WHOLE,
    "train.quantise": one_of("int8"),
    "train.int8_weights": BITS,
    "int8_weights": BITS,
    "train.on_nonfinite": one_of("stop", "skip", "rollback"),
    "distill.teacher": NAMED,
    "distill.model": NAMED,
    "distill.width_mult": WIDTH,
    "distill.temperature": ABOVE_0,
    "distill.share": PART,
    "run.device": one_of("auto", "cpu", "cuda", "mps"),
    "run.root": Range(lambda v: v.strip() != "", "must name a folder"),
    "run.image_timeout": ABOVE_0,
    "run.workers": Range(lambda v: 0 <= v <= 1024, "must be a whole number from 0 to 1024"),
    "run.threads": up_to(4096),
    "run.devices": up_to(1024),
    "run.max_restarts": COUNT,
    "run.save_every_minutes": FROM_0,
    "run.log_every_steps": COUNT,
    "run.log_every_minutes": FROM_0,
    "run.keep_best": COUNT,
    "run.profile": Range(lambda v: 0 <= v <= 100, "must be a whole number from 0 to 100"),
    "run.precision": one_of("auto", "float32", "tf32", "bfloat16", "float16"),
    "run.memory_format": one_of("auto", "channels_last", "contiguous"),
    # YAML's words for truth come capitalised
    "run.cuda_graphs": Range(
        lambda v: v.lower() in ("auto", "true", "false"), "not known; allowed: auto, true, false"
    ),
    "run.wandb_project": Range(
        lambda v: v.strip() != "" and not set(v) & set("/\\#?%:") and len(v) <= 128,
        "must be 1 to 128 characters without / \\ # ? % :",
    ),
    "run.wandb": one_of("auto", "online", "offline", "disabled"),
    "weights": NAMED,
    "weights_like": NAMED,
    "weights_key": NAMED,
    "checkpoint": NAMED,
    "image": NAMED,
    "models": Range(lambda v: len(v) > 0, "must name at least one model"),
    "batch_sizes": Range(
        lambda v: len(v) > 0 and min(v) >= 1 and max(v) <= 1_000_000,
        "must be whole numbers from 1 to 1,000,000",
    ),
    "runtimes": Range(
        lambda v: len(v) > 0 and len(set(v)) == len(v), "must name at least one, each once"
    ),
    "resolution": SIDE,
    "format": one_of("onnx", "openvino", "executorch", "torch_export"),
    "tolerance": ABOVE_0,
    "calibration_images": up_to(1_000_000),
    "method": one_of("rounds", "one_call"),
    "layers": NAMED,
    "warmup": Range(lambda v: 0 <= v <= 1_000_000, "must be a whole number from 0 to 1,000,000"),
    "rounds": up_to(1_000_000),
}


def check_range(key: str, value: Any) -> None:
    """Raise InputError if `value` is outside the range of `key`; None is always inside."""
    if value is not None and not RANGES[key].allows(value):
        raise InputError(key, value, RANGES[key].problem)
