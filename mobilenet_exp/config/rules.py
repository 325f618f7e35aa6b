"""What the configuration's values must be, where their types alone do not settle it."""

import math

_ABOVE_0 = (lambda v: 0 < v < float("inf"), "must be a number > 0")
_FROM_0 = (lambda v: 0 <= v < float("inf"), "must be a number >= 0")
_WHOLE = (lambda v: v >= 1, "must be a whole number > 0")
_COUNT = (lambda v: v >= 0, "must be a whole number >= 0")
_SHARE = (lambda v: 0 <= v < 1, "must be in [0, 1)")
_PART = (lambda v: 0 <= v <= 1, "must be in [0, 1]")
_SIDE = (lambda v: v >= 32, "must be a whole number of pixels >= 32")
_NAMED = (lambda v: v.strip() != "", "must name something, or not be given")
_RGB = (
    lambda v: len(v) == 3 and all(map(math.isfinite, v)),
    "must be three finite numbers, one per colour channel",
)


def _one_of(*allowed: str) -> tuple:
    return (lambda v: v in allowed, f"not known; allowed: {', '.join(allowed)}")


# One row per key whose value the types alone do not settle; null is left to the types.
RULES = {
    "model.width_mult": _ABOVE_0,
    "model.num_classes": _WHOLE,
    "model.dropout": _SHARE,
    "model.stem_stride": (lambda v: v in (1, 2), "must be 1 or 2"),
    "model.bn_eps": _ABOVE_0,
    "model.bn_momentum": (lambda v: 0 < v <= 1, "must be in (0, 1]"),
    "model.stochastic_depth": _SHARE,
    "optimizer.lr": _ABOVE_0,
    "optimizer.weight_decay": _FROM_0,
    "schedule.warmup_epochs": _FROM_0,
    "schedule.warmup_from": _SHARE,
    "schedule.noise": (
        lambda v: len(v) == 2 and 0 <= v[0] <= v[1] <= 1,
        "must be two shares of the training, as [0.42,0.9]",
    ),
    "data.batch_size": _WHOLE,
    "data.resolution": _SIDE,
    "data.train_resolution": _SIDE,
    "data.progressive_from": _SIDE,
    "data.min_crop_area": (lambda v: 0 < v <= 1, "must be in (0, 1]"),
    "data.random_erase": _PART,
    "data.erase_mode": _one_of("const", "pixel"),
    "data.mixup": _FROM_0,
    "data.cutmix": _FROM_0,
    "data.mix_prob": _PART,
    "data.cutmix_share": _PART,
    "data.repeats": _WHOLE,
    "data.crop_pct": (lambda v: 0 < v <= 1, "must be in (0, 1]"),
    "data.interpolation": _one_of("bilinear", "bicubic"),
    "data.on_bad_image": _one_of("skip", "fail"),
    "data.mean": _RGB,
    "data.std": (
        lambda v: len(v) == 3 and all(0 < each < math.inf for each in v),
        "must be three numbers > 0",
    ),
    "train.epochs": _WHOLE,
    "train.seed": (lambda v: 0 <= v < 2**32, "must be a whole number from 0 to 2**32 - 1"),
    "train.label_smoothing": _SHARE,
    "train.precise_bn_batches": _COUNT,
    "train.clip_grad_norm": _ABOVE_0,
    "train.accumulate": _WHOLE,
    "train.bn": _one_of("batch", "sync", "frozen"),
    "train.trainable": _one_of("all", "classifier"),
    "train.ema_decay": (lambda v: 0 < v < 1, "must be in (0, 1)"),
    "train.ema_every": _WHOLE,
    "train.on_nonfinite": _one_of("stop", "skip", "rollback"),
    "distill.teacher": _NAMED,
    "distill.model": _NAMED,
    "distill.width_mult": _ABOVE_0,
    "distill.temperature": _ABOVE_0,
    "distill.share": _PART,
    "run.device": _one_of("auto", "cpu", "cuda", "mps"),
    "run.root": (lambda v: v.strip() != "", "must name a folder"),
    "weights": _NAMED,
    "weights_like": _NAMED,
    "checkpoint": _NAMED,
    "image": _NAMED,
    "data.labels": _NAMED,
    "run.workers": _COUNT,
    "run.devices": _WHOLE,
    "run.max_restarts": _COUNT,
    "run.save_every_minutes": _FROM_0,
    "run.memory_format": _one_of("channels_last", "contiguous"),
    "run.wandb": _one_of("auto", "online", "offline", "disabled"),
    "models": (lambda v: len(v) > 0, "must name at least one model"),
    "batch_sizes": (lambda v: len(v) > 0 and min(v) >= 1, "must be whole numbers > 0"),
    "resolution": _SIDE,
    "warmup": _COUNT,
    "rounds": _WHOLE,
}
