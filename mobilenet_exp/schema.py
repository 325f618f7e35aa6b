"""The schema of every configuration, and the rules that its types alone do not settle.

`model data optimizer schedule train` and `weights` say what is learned and give a run
its name; `run`, and the fields marked as a place, say where and how.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

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
    # of that resizing: bilinear or bicubic
    interpolation: str = "bilinear"
    # training augmentation: random_resized_crop, pad_crop_flip, affine, none
    augment: str = MISSING
    # of pixels scaled to [0, 1], per colour channel
    mean: list[float] = MISSING
    std: list[float] = MISSING
    # of ImageNet's val/ where it is one flat folder: the file that gives each its label
    labels: str | None = field(default=None, metadata=PLACE)
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
    # weights to start from: a file of any known layout, torchvision:TAG or timm:ARCH.TAG
    weights: str | None = None
    # published weights whose settings a file needs, where its keys cannot tell
    weights_like: str | None = None
    run: RunConfig = field(default_factory=RunConfig)


@dataclass
class EvalModelConfig(ModelConfig):
    # null: the checkpoint's
    name: str | None = None


@dataclass
class EvalDataConfig(DataConfig):
    """Null: as the checkpoint or the weights' source has it."""

    name: str | None = None
    batch_size: int | None = None
    resolution: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    augment: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    # an image that cannot be read or has no label: skip reports it and goes on, fail stops
    on_bad_image: str = "skip"
    # score against ImageNet-ReaL's labels too
    real_labels: bool = False


@dataclass
class EvalConfig:
    """What `eval.py` composes: one of `checkpoint` and `weights`, images or a data set."""

    # of a run: brings its model, data and preprocessing
    checkpoint: str | None = None
    # as for train.py; needs model=
    weights: str | None = None
    weights_like: str | None = None
    # a photo, or a folder of photos, to name instead of a data set to score
    image: str | None = None
    model: EvalModelConfig = field(default_factory=EvalModelConfig)
    data: EvalDataConfig = field(default_factory=EvalDataConfig)
    # data files set it for training; not read
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=1))
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


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for evaluation; the defaults are the field's for ImageNet.

    The shorter side is resized to resolution / crop_pct, the centre is cropped; mean and
    std are of pixels in [0, 1].
    """

    resolution: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])

    def words(self) -> str:
        """Return it in one line."""
        return (
            f"{self.resolution} px, crop_pct {self.crop_pct:g}, {self.interpolation}, "
            f"mean {list(self.mean)}, std {list(self.std)}"
        )


AnyConfig = Config | EvalConfig | BenchConfig

_ABOVE_0 = (lambda v: 0 < v < float("inf"), "must be a number > 0")
_FROM_0 = (lambda v: 0 <= v < float("inf"), "must be a number >= 0")
_WHOLE = (lambda v: v >= 1, "must be a whole number > 0")
_COUNT = (lambda v: v >= 0, "must be a whole number >= 0")
_SHARE = (lambda v: 0 <= v < 1, "must be in [0, 1)")
_SIDE = (lambda v: v >= 32, "must be a whole number of pixels >= 32")
_NAMED = (lambda v: v.strip() != "", "must name something, or not be given")
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
    "data.interpolation": _one_of("bilinear", "bicubic"),
    "data.on_bad_image": _one_of("skip", "fail"),
    "data.mean": _RGB,
    "data.std": (lambda v: len(v) == 3 and min(v) > 0, "must be three numbers > 0"),
    "train.epochs": _WHOLE,
    "train.seed": (lambda v: 0 <= v < 2**32, "must be a whole number from 0 to 2**32 - 1"),
    "train.label_smoothing": _SHARE,
    "train.precise_bn_batches": _COUNT,
    "run.device": _one_of("auto", "cpu", "cuda", "mps"),
    "run.root": (lambda v: v.strip() != "", "must name a folder"),
    "weights": _NAMED,
    "weights_like": _NAMED,
    "checkpoint": _NAMED,
    "image": _NAMED,
    "data.labels": _NAMED,
    "run.workers": _COUNT,
    "run.wandb": _one_of("auto", "online", "offline", "disabled"),
    "models": (lambda v: len(v) > 0, "must name at least one model"),
    "batch_sizes": (lambda v: len(v) > 0 and min(v) >= 1, "must be whole numbers > 0"),
    "resolution": _SIDE,
    "warmup": _COUNT,
    "rounds": _WHOLE,
}
