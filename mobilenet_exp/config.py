"""The configuration: its schema, its rules, and the identity of a run.

Only here and in `cli` is OmegaConf known. `model data optimizer schedule
train` say what is learned and give a run its name; `run`, and the fields marked as a
place, say where and how. Nothing here needs torch.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from mobilenet_exp.errors import InputError

# Says where things are, not what is learned: not part of a run's identity.
PLACE = {"place": True}


@dataclass
class ModelConfig:
    # registry name: v1, v2, v3_large, ...
    name: str = MISSING
    # the paper's alpha, > 0
    width_mult: float = 1.0
    # size of the classifier; null: as many as the data has
    num_classes: int | None = None
    # probability before the classifier, [0, 1); null: the paper's
    dropout: float | None = None
    # 2 as in every paper; 1 keeps small images (32 px) from shrinking away
    stem_stride: int = 2
    # null: the paper's
    bn_eps: float | None = None
    # PyTorch's sense, 1 - decay; null: the paper's
    bn_momentum: float | None = None
    # options of one family, e.g. activation for v1, head_width for v3
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class OptimizerConfig:
    # sgd, rmsprop, rmsprop_torch, adamw
    name: str = MISSING
    # base learning rate, at the peak of the schedule
    lr: float = MISSING
    weight_decay: float = MISSING
    # whether weight decay also acts on biases and normalisation
    decay_norm_and_bias: bool = False
    # further arguments of the optimizer's class
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class ScheduleConfig:
    # cosine, step, exponential, constant
    name: str = MISSING
    # linear rise from 0 to lr, in epochs; fractions allowed
    warmup_epochs: float = 0.0
    # arguments of the schedule's function
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataConfig:
    # digits, imagefolder, imagenet, cifar10, fake
    name: str = MISSING
    # folder of the images; null where the data needs none
    root: str | None = field(default=None, metadata=PLACE)
    # may the data be downloaded into root?
    download: bool = field(default=False, metadata=PLACE)
    batch_size: int = MISSING
    # input side in pixels, >= 32
    resolution: int = MISSING
    # share of the resized image that evaluation crops from its centre, (0, 1]
    crop_pct: float = MISSING
    # training augmentation: random_resized_crop, pad_crop_flip, affine, none
    augment: str = MISSING
    # of pixels scaled to [0, 1], per colour channel
    mean: list[float] = MISSING
    std: list[float] = MISSING
    # options of one dataset, e.g. num_images for fake
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainConfig:
    epochs: int = MISSING
    seed: int = 0
    # probability mass spread over all classes, [0, 1)
    label_smoothing: float = 0.0
    # training batches to re-estimate BatchNorm's statistics from, before each
    # evaluation; 0: use the running averages as they are
    precise_bn_batches: int = 0


@dataclass
class RunConfig:
    # holds the run folders, sweeps and W&B's files
    root: str = "runs"
    # auto, cpu, cuda, mps
    device: str = "auto"
    # processes that load images; null: 0 for data in memory, else one per core
    workers: int | None = None
    # auto: online where a key and a network are there, else offline; or a fixed mode
    wandb: str = "auto"
    wandb_project: str = "mobilenet_exp"


@dataclass
class Config:
    """What `train.py` composes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass
class EvalDataConfig:
    # null: as in the checkpoint
    root: str | None = None
    batch_size: int | None = None


@dataclass
class EvalConfig:
    """What `eval.py` composes; everything else comes from the checkpoint."""

    checkpoint: str = MISSING
    data: EvalDataConfig = field(default_factory=EvalDataConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass
class BenchConfig:
    """What `bench.py` composes."""

    # registry names of ours and `torchvision:NAME` of peers, in the table's order
    models: list[str] = MISSING
    batch_sizes: list[int] = MISSING
    resolution: int = 224
    # untimed forwards of each net before the first round
    warmup: int = MISSING
    # interleaved rounds; each net runs once a round
    rounds: int = MISSING
    run: RunConfig = field(default_factory=RunConfig)


AnyConfig = Config | EvalConfig | BenchConfig

_ABOVE_0 = (lambda v: 0 < v < float("inf"), "must be a number > 0")
_FROM_0 = (lambda v: 0 <= v < float("inf"), "must be a number >= 0")
_WHOLE = (lambda v: v >= 1, "must be a whole number > 0")
_COUNT = (lambda v: v >= 0, "must be a whole number >= 0")
_SHARE = (lambda v: 0 <= v < 1, "must be in [0, 1)")
_SIDE = (lambda v: v >= 32, "must be a whole number of pixels >= 32")
_RGB = (lambda v: len(v) == 3, "must be three numbers, one per colour channel")


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
    "optimizer.lr": _ABOVE_0,
    "optimizer.weight_decay": _FROM_0,
    "schedule.warmup_epochs": _FROM_0,
    "data.batch_size": _WHOLE,
    "data.resolution": _SIDE,
    "data.crop_pct": (lambda v: 0 < v <= 1, "must be in (0, 1]"),
    "data.mean": _RGB,
    "data.std": (lambda v: len(v) == 3 and min(v) > 0, "must be three numbers > 0"),
    "train.epochs": _WHOLE,
    "train.seed": (lambda v: 0 <= v < 2**32, "must be a whole number from 0 to 2**32 - 1"),
    "train.label_smoothing": _SHARE,
    "train.precise_bn_batches": _COUNT,
    "run.device": _one_of("auto", "cpu", "cuda", "mps"),
    "run.root": (lambda v: v.strip() != "", "must name a folder"),
    "run.workers": _COUNT,
    "run.wandb": _one_of("auto", "online", "offline", "disabled"),
    "models": (lambda v: len(v) > 0, "must name at least one model"),
    "batch_sizes": (lambda v: len(v) > 0 and min(v) >= 1, "must be whole numbers > 0"),
    "resolution": _SIDE,
    "warmup": _COUNT,
    "rounds": _WHOLE,
}


def to_config(composed: Any, schema: type = Config) -> AnyConfig:
    """Turn a composed DictConfig, or a plain dict of an old run, into a checked Config.

    Raises InputError naming the key, the value and what is allowed.
    """
    composed = OmegaConf.create(composed) if isinstance(composed, dict) else composed
    for key in sorted(OmegaConf.missing_keys(composed)):
        raise InputError(key, "???", f"must be given, as {key}=...")
    # a plain dict, so that the schema refuses what it does not name
    plain = OmegaConf.to_container(composed, resolve=True)
    typed = OmegaConf.merge(OmegaConf.structured(schema), plain)
    for key, (is_allowed, allowed) in RULES.items():
        value = OmegaConf.select(typed, key)
        if value is not None and not is_allowed(value):
            raise InputError(key, value, allowed)
    return OmegaConf.to_object(typed)


def to_dict(config: AnyConfig) -> dict[str, Any]:
    """Return the config as nested plain dicts, for files, checkpoints and W&B."""
    return asdict(config)


def to_yaml(config: AnyConfig) -> str:
    """Return the config as the YAML that a run keeps."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def run_name(config: Config) -> str:
    """Return the run's folder name and W&B id: readable head, hash of what is learned.

    Only what differs from the schema's defaults enters the hash, so a key that a later
    version adds does not rename the runs made before it.
    """
    identity = {}
    for section in (part for part in fields(config) if part.name != "run"):
        values = getattr(config, section.name)
        default = section.default_factory()
        identity[section.name] = {
            entry.name: getattr(values, entry.name)
            for entry in fields(values)
            if not entry.metadata.get("place")
            and getattr(values, entry.name) != getattr(default, entry.name)
        }
    if config.data.name == "imagefolder" and config.data.root:
        # a folder of images has no other name than its own; where it lies does not matter
        identity["data"]["folder"] = Path(config.data.root).resolve().name
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return f"{run_title(config)}-{digest}"


def run_title(config: Config) -> str:
    """Return the readable part of the name: model, width, side, data, optimizer, seed."""
    return (
        f"{config.model.name}-w{config.model.width_mult:g}-r{config.data.resolution}"
        f"-{config.data.name}-{config.optimizer.name}-s{config.train.seed}"
    )
