"""The schema of every configuration.

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
    # probability of dropping a block's branch, rising from 0 at the first towards this
    stochastic_depth: float = 0.0
    # options of one family, e.g. activation for v1, head_width for v3
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class OptimizerConfig:
    # sgd, rmsprop, rmsprop_torch, adamw, lamb
    name: str = MISSING
    # base learning rate, at the peak of the schedule
    lr: float = MISSING
    weight_decay: float = MISSING
    # whether weight decay also acts on biases and normalisation
    decay_norm_and_bias: bool = False
    # whether it acts on depthwise filters; V1's paper: very little or none
    decay_depthwise: bool = True
    # further arguments of the optimizer's class
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class ScheduleConfig:
    # cosine, step, exponential, constant
    name: str = MISSING
    # linear rise to lr, in epochs, from this share of it in [0, 1)
    warmup_epochs: float = 0.0
    warmup_from: float = 0.0
    # whether the schedule's epochs count from the start, not from the warm-up's end
    counts_warmup: bool = False
    # shares of the training between which each epoch's rate has timm's noise; null: nowhere
    noise: list[float] | None = None
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
    # images of one update, over all processes
    batch_size: int = MISSING
    # input side in pixels, >= 32
    resolution: int = MISSING
    # that of training; null: the same
    train_resolution: int | None = None
    # that of the first epoch, cut to whole 32s, from which it rises to training's
    progressive_from: int | None = None
    # share of the resized image that evaluation crops from its centre, (0, 1]
    crop_pct: float = MISSING
    # of that resizing: bilinear or bicubic
    interpolation: str = "bilinear"
    # training augmentation: random_resized_crop, inception, pad_crop_flip, affine, none
    augment: str = MISSING
    # smallest share of the image's area that the first two of them crop
    min_crop_area: float = 0.08
    # imagenet or cifar10 (AutoAugment), ta_wide (TrivialAugment), or RandAugment in timm's
    # words, e.g. rand-m9-mstd0.5; null: none
    auto_augment: str | None = None
    # probability of erasing a rectangle, by the mean (const) or by noise (pixel)
    random_erase: float = 0.0
    erase_mode: str = "const"
    # alphas of mixup and cutmix; 0: off
    mixup: float = 0.0
    cutmix: float = 0.0
    # probability that a batch is mixed, and, where both are on, that cutmix does it
    mix_prob: float = 1.0
    cutmix_share: float = 0.5
    # repeated augmentation: times that an image comes in an epoch of as many images
    repeats: int = 1
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
    # largest norm of all gradients together; null: they are not clipped
    clip_grad_norm: float | None = None
    # parts of a batch, one after the other; BatchNorm sees each alone
    accumulate: int = 1
    # what BatchNorm learns from: batch, each process's own images; sync, those of all
    # processes; frozen: it keeps the statistics it starts from
    bn: str = "batch"
    # all, or classifier: a linear probe, the rest stays as `weights` has it
    trainable: str = "all"
    # decay of an average of weights and BN statistics, e.g. 0.9999; null: none is kept
    ema_decay: float | None = None
    # updates between two steps of the average
    ema_every: int = 1
    # whether its decay rises from 0, so that a short run's average is not its start
    ema_warmup: bool = True
    # where a loss is not finite: stop; skip the update; or rollback to the last
    # checkpoint, passing over the images since
    on_nonfinite: str = "stop"


@dataclass
class DistillConfig:
    # learn from its answers: a checkpoint, a weights file, torchvision:TAG, timm:ARCH.TAG
    teacher: str | None = None
    # the net that a file or torchvision's tag is of
    model: str | None = None
    width_mult: float = 1.0
    # by which both answers are softened, > 0
    temperature: float = 1.0
    # the teacher's part in the loss, [0, 1]
    share: float = 0.5


@dataclass
class RunConfig:
    # holds the run folders, sweeps and W&B's files
    root: str = "runs"
    # auto, cpu, cuda, mps
    device: str = "auto"
    # processes that load images; null: 0 for data in memory, else one per core
    workers: int | None = None
    # processes that train together on this machine, a GPU each where it has GPUs
    devices: int = 1
    # times that they are started anew, from the last checkpoint, after one has died
    max_restarts: int = 1
    # minutes between two checkpoints inside an epoch; 0: every update; null: none
    save_every_minutes: float | None = 10.0
    # only algorithms that give the same bits each time; slower on a GPU
    deterministic: bool = False
    # of images and weights: channels_last, faster nearly everywhere; or contiguous
    memory_format: str = "channels_last"
    # keep freed memory for the next step (Linux): faster on CPUs, more of it is held
    keep_memory: bool = True
    # shrink the recipe to seconds on noise, to see that it runs
    smoke: bool = False
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
    distill: DistillConfig = field(default_factory=DistillConfig)
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
    # whether to take a checkpoint's averaged weights, where it has them
    ema: bool = True
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


AnyConfig = Config | EvalConfig | BenchConfig
