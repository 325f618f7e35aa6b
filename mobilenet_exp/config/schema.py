"""The keys of every configuration; the comment above a key is its help text.

The sections `model data optimizer schedule train distill` and `weights` say what is
learned and give a run its name. `run`, and fields marked as a place, say where and how.
Each program has a schema of its own, with exactly the keys that it reads.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# Says where things are, not what is learned: not part of a run's identity.
NOT_IDENTITY = {"place": True}
# Names a file or folder, in which ~ is the home folder.
PATH = {"path": True}
# Part of a run's identity even at the schema's default.
ALWAYS = {"always": True}


class Need(NamedTuple):
    """What a key needs to have any effect: in words, and whether a configuration has it."""

    words: str
    is_met: Callable[[Any], bool]


def needs(words: str, is_met: Callable[[Any], bool]) -> dict[str, Any]:
    """Return the metadata of a key that has an effect in some configurations alone.

    Recipes may carry it anywhere; a command that gives it where it has none is refused.
    """
    return {"needs": Need(words, is_met)}


IN_MEMORY = ("digits", "fake", "noise")
ARRAYS = (*IN_MEMORY, "cifar10", "cifar100", "fashion_mnist", "svhn")
# sets that lie where the user has them, which nothing downloads
BROUGHT = ("imagefolder", "imagenet", "packed", "photos")
FILES = needs(
    "data of image files, e.g. data=imagefolder or data=imagenet",
    lambda config: config.data.name not in ARRAYS,
)
ROOT = needs(
    "data that lie in a folder, e.g. data=imagenet or data=imagefolder",
    lambda config: config.data.name not in IN_MEMORY,
)
DOWNLOAD = needs(
    "data that can be downloaded, e.g. data=cifar10 or data=food101",
    lambda config: config.data.name not in (*IN_MEMORY, *BROUGHT),
)
SPLIT = needs(
    "data.val_share",
    # of a checkpoint's own data, which are not known yet
    lambda config: config.data.val_share is not None or config.data.name is None,
)
CROPS = needs(
    "data.augment=random_resized_crop or inception",
    lambda config: config.data.augment not in ("pad_crop_flip", "affine", "none"),
)
ERASES = needs("data.random_erase above 0", lambda config: config.data.random_erase > 0)
MIXES = needs(
    "data.mixup or data.cutmix above 0",
    lambda config: config.data.mixup > 0 or config.data.cutmix > 0,
)
MIXES_BOTH = needs(
    "both data.mixup and data.cutmix above 0",
    lambda config: config.data.mixup > 0 and config.data.cutmix > 0,
)
OWN_NETWORK = needs(
    "a network of this repository", lambda config: getattr(config.model, "name", None) != "timm"
)
DECAYS = needs("optimizer.weight_decay above 0", lambda config: config.optimizer.weight_decay > 0)
WARMS_UP = needs("schedule.warmup_epochs above 0", lambda c: c.schedule.warmup_epochs > 0)
AVERAGES = needs("train.ema_decay", lambda config: config.train.ema_decay is not None)
QUANTISES = needs("train.quantise=int8", lambda config: config.train.quantise is not None)
SEVERAL = needs("run.devices above 1", lambda config: config.run.devices > 1)
READERS = needs(
    "readers: data of files, or run.workers above 0",
    lambda config: config.run.workers or (
        config.run.workers is None and config.data.name not in IN_MEMORY
    ),
)  # fmt: skip
CALIBRATES = needs("int8=true", lambda config: config.int8)
MAKES_SMALLER = needs(
    "side=PIXELS and form=jpeg", lambda config: config.side is not None and config.form == "jpeg"
)
HAS_CHECKPOINT = needs("checkpoint=FILE", lambda config: config.checkpoint is not None)
HAS_WEIGHTS = needs("weights=FILE", lambda config: config.weights is not None)

# keys of data that say how images are prepared for a network
PREPARATION = ("resolution", "crop_pct", "interpolation", "resize", "mean", "std")


def _mean() -> list[float]:
    return [0.485, 0.456, 0.406]


def _std() -> list[float]:
    return [0.229, 0.224, 0.225]


@dataclass(kw_only=True)
class ModelOptions:
    """What tells one network from another, trained or not."""

    # the paper's alpha, > 0: multiplies the number of channels
    width_mult: float = 1.0
    # size of the classifier; null: the number of classes in the data
    num_classes: int | None = None
    # 1 or 2; null: 2 as in every paper, but 1 where images of less than 64 px are trained
    # on, which would otherwise shrink to a single pixel; weights keep the stride they were
    # trained with
    stem_stride: int | None = field(default=None, metadata=OWN_NETWORK)
    # BatchNorm's epsilon; null: the paper's
    bn_eps: float | None = None
    # options of one family, e.g. activation for v1, head_width for v3
    args: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The network's name for people: of another library's, the one that it has there."""
        return self.args.get("arch") or getattr(self, "name", None) or ""


@dataclass(kw_only=True)
class ModelConfig(ModelOptions):
    # registry name: v1, v2, v3_large, ...
    name: str
    # dropout probability before the classifier, in [0, 1); null: the paper's
    dropout: float | None = None
    # BatchNorm's momentum in PyTorch's sense, 1 - decay; null: the paper's
    bn_momentum: float | None = None
    # probability of dropping a block's branch, rising from 0 at the first block to this
    stochastic_depth: float = 0.0


@dataclass(kw_only=True)
class OptimizerConfig:
    # registry name: sgd, rmsprop (TensorFlow's rule), rmsprop_torch, adamw, lamb
    name: str
    # base learning rate, at the peak of the schedule
    lr: float
    # L2 penalty, or decoupled decay for adamw and lamb
    weight_decay: float
    # whether weight decay also acts on biases and normalisation
    decay_norm_and_bias: bool = field(default=False, metadata=DECAYS)
    # whether weight decay acts on depthwise filters; V1's paper: very little or none
    decay_depthwise: bool = field(default=True, metadata=DECAYS)
    # further arguments of the optimizer, e.g. momentum
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class ScheduleConfig:
    # registry name: cosine, step, exponential, constant
    name: str
    # length of the linear warm-up, in epochs
    warmup_epochs: float = 0.0
    # share of lr that the warm-up starts from, in [0, 1)
    warmup_from: float = field(default=0.0, metadata=WARMS_UP)
    # whether the schedule counts epochs from the start, not from the end of the warm-up
    counts_warmup: bool = field(default=False, metadata=WARMS_UP)
    # epochs at the end at the rate that the schedule ends with
    cooldown_epochs: float = 0.0
    # two shares of the training between which timm's noise is added to each epoch's rate;
    # null: no noise
    noise: list[float] | None = None
    # arguments of the schedule, e.g. gamma
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class ImageSource:
    """Where images are."""

    # folder of the images; null where the data needs none
    root: str | None = field(default=None, metadata=NOT_IDENTITY | PATH | ROOT)
    # whether the data may be downloaded into root
    download: bool = field(default=False, metadata=NOT_IDENTITY | DOWNLOAD)
    # for ImageNet's val/ in one flat folder: the file that gives each image its label
    labels: str | None = field(default=None, metadata=NOT_IDENTITY | PATH)
    # options of one data set, e.g. num_images for fake
    args: dict[str, Any] = field(default_factory=dict)

    @property
    def is_imagenet(self) -> bool:
        """Whether these are ImageNet-1k's images and classes, as folders or as shards."""
        name = getattr(self, "name", None)
        is_packed = name == "packed" and self.args.get("classes") == "imagenet"
        return name == "imagenet" or is_packed


@dataclass(kw_only=True)
class ImagesConfig(ImageSource):
    """Which images, and how they are prepared for evaluation."""

    # registry name: digits, imagefolder, imagenet, packed, ...; --help lists conf/data
    name: str
    # side of the input in pixels, >= 32
    resolution: int = field(default=224, metadata=ALWAYS)
    # share of the resized image that evaluation crops from its centre, in (0, 1]
    crop_pct: float = field(default=0.875, metadata=ALWAYS)
    # method of that resizing: bilinear or bicubic
    interpolation: str = "bilinear"
    # how pixels are resized: fast, or exact, which is Pillow's way to the last bit; they
    # differ by at most 2 of 255, nearly everywhere by 0
    resize: str = "fast"
    # mean per colour channel, of pixels scaled to [0, 1]
    mean: list[float] = field(default_factory=_mean, metadata=ALWAYS)
    # standard deviation per colour channel
    std: list[float] = field(default_factory=_std, metadata=ALWAYS)
    # photos whose EXIF data say that they lie on their side: apply turns them upright,
    # ignore takes them as they are stored, auto ignores ImageNet's and applies others'
    exif: str = field(default="ignore", metadata=FILES)
    # share of each class to hold out where root holds class folders without train/ and
    # val/; null: root has both
    val_share: float | None = None
    # seed of that choice
    val_seed: int = field(default=0, metadata=SPLIT)


@dataclass(kw_only=True)
class DataConfig(ImagesConfig):
    """The same, and how the images are trained on."""

    # images of one update, over all processes
    batch_size: int = field(default=256, metadata=ALWAYS)
    # side of the input in training; null: the same as in evaluation
    train_resolution: int | None = None
    # side in the first epoch, from which it rises to training's; null: constant
    progressive_from: int | None = None
    # registry name of training's augmentation: random_resized_crop, inception, pad_crop_flip,
    # affine, none
    augment: str = field(default="random_resized_crop", metadata=ALWAYS)
    # smallest share of the image's area that random_resized_crop and inception crop
    min_crop_area: float = field(default=0.08, metadata=CROPS)
    # method by which training resizes: bilinear, bicubic, or random: one of both for each image
    train_interpolation: str = "bilinear"
    # most by which brightness, contrast and saturation change, in shares; 0: not at all
    color_jitter: float = 0.0
    # imagenet or cifar10 (AutoAugment), ta_wide (TrivialAugment), or RandAugment in timm's
    # notation, e.g. rand-m9-mstd0.5; null: none
    auto_augment: str | None = None
    # probability of erasing a rectangle of the image
    random_erase: float = 0.0
    # what the rectangle is filled with: const (the mean) or pixel (noise)
    erase_mode: str = field(default="const", metadata=ERASES)
    # alpha of mixup; 0: off
    mixup: float = 0.0
    # alpha of cutmix; 0: off
    cutmix: float = 0.0
    # probability that a batch is mixed at all
    mix_prob: float = field(default=1.0, metadata=MIXES)
    # where mixup and cutmix are both on: probability that it is cutmix
    cutmix_share: float = field(default=0.5, metadata=MIXES_BOTH)
    # epochs at the end in which nothing is mixed
    mix_off_epochs: int = field(default=0, metadata=MIXES)
    # repeated augmentation: how often an image appears in an epoch of the same length
    repeats: int = 1
    # an image that cannot be read: fail stops the run, skip trains on the next one in its
    # place and names it
    on_bad_image: str = field(default="fail", metadata=NOT_IDENTITY | FILES)


@dataclass(kw_only=True)
class TrainConfig:
    # number of passes over the training images
    epochs: int
    # seed of weights, order, augmentation and dropout
    seed: int = 0
    # registry name: cross_entropy, or bce: a yes or no for each class
    loss: str = "cross_entropy"
    # probability mass spread over all classes, in [0, 1)
    label_smoothing: float = 0.0
    # training batches from which BatchNorm's statistics are re-estimated before each
    # evaluation; 0: use the running averages as they are
    precise_bn_batches: int = 0
    # epochs between two evaluations; the last epoch is always evaluated
    eval_every: int = 1
    # largest norm of all gradients together; null: they are not clipped
    clip_grad_norm: float | None = None
    # parts that a batch is cut into, one after the other; BatchNorm sees each part alone
    accumulate: int = 1
    # which images BatchNorm learns from: batch (each process's own), sync (those of all
    # processes), frozen (it keeps the statistics it starts from)
    bn: str = "batch"
    # which weights learn: all, or classifier (a linear probe on given weights)
    trainable: str = "all"
    # decay of an average of weights and BatchNorm statistics, e.g. 0.9999; null: no average
    ema_decay: float | None = None
    # updates between two steps of the average
    ema_every: int = field(default=1, metadata=AVERAGES)
    # whether the decay rises from 0, so that a short run's average forgets its start
    ema_warmup: bool = field(default=True, metadata=AVERAGES)
    # int8: weights and activations are rounded as in 8 bits, so that the network learns to
    # answer with them; null: they are not
    quantise: str | None = None
    # bits of the weights that it learns: 7, right on every processor, or 8, for those with VNNI,
    # AMX or Arm's dot product
    int8_weights: int = field(default=7, metadata=QUANTISES)
    # what to do when a loss is not finite: stop, skip the update, or rollback to the last
    # checkpoint and continue after the images that failed
    on_nonfinite: str = "stop"


@dataclass(kw_only=True)
class DistillConfig:
    # whose answers to learn from: a checkpoint, a weights file, torchvision:TAG, timm:ARCH.TAG
    teacher: str | None = field(default=None, metadata=PATH)
    # the teacher's architecture, for a weights file or torchvision's tag
    model: str | None = None
    # the teacher's width
    width_mult: float = 1.0
    # temperature that softens both answers, > 0
    temperature: float = 1.0
    # the teacher's part in the loss, in [0, 1]
    share: float = 0.5


@dataclass(kw_only=True)
class ExportRunConfig:
    # modules of your own to import first; they register models, data sets, optimizers, ...
    imports: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class BenchRunConfig(ExportRunConfig):
    # device to compute on: auto, cpu, cuda, mps
    device: str = "auto"
    # CPU threads of a process; null: as torch chooses, divided among run.devices; where other
    # programs are busy, training and evaluation leave them their cores
    threads: int | None = None
    # arithmetic precision: float32, tf32 (CUDA's rounded float32), bfloat16, float16, or auto:
    # bfloat16 for training on CUDA (float16 where it is only emulated), else float32
    precision: str = "auto"
    # keep freed memory for the next batch (Linux, CPU): faster, but more memory is held
    keep_memory: bool = True
    # folder that holds the runs, sweeps, benchmarks and W&B's files
    root: str = field(default="runs", metadata=PATH)
    # Weights & Biases: online, offline, disabled, or auto: online where there is a key and
    # a network, else offline
    wandb: str = "auto"
    # the project in Weights & Biases; null: WANDB_PROJECT, else mobilenet_exp
    wandb_project: str | None = None


@dataclass(kw_only=True)
class EvalRunConfig(BenchRunConfig):
    # metrics of the validation images beside top1, top5, loss and ece: mean_class_top1 (each
    # class counts alike), or those that your own modules register
    metrics: list[str] = field(default_factory=list)
    # whether the run's folder gets pictures: curves, the first batch, the worst images
    pictures: bool = True
    # processes that load images, for each that trains or evaluates; 0: it reads them itself;
    # null: on a GPU the cores of each; on a CPU 0 for data in memory, else half of the cores,
    # at most 4
    workers: int | None = None
    # seconds that reading one image may take before the run ends and names it; null: any
    image_timeout: float | None = field(default=300.0, metadata=READERS)
    # memory layout of images and weights: channels_last (faster nearly everywhere),
    # contiguous, or auto: channels_last, but contiguous on MPS
    memory_format: str = "auto"


@dataclass(kw_only=True)
class RunConfig(EvalRunConfig):
    # processes that train together on this machine, each on a GPU of its own if it has GPUs
    devices: int = 1
    # how often they are all restarted from the last checkpoint after one has died
    max_restarts: int = field(default=1, metadata=SEVERAL)
    # whether other processes are kept from running in the run's folder; false: for a file system
    # that cannot lock files, with your word that no other job writes there
    lock: bool = True
    # minutes between two checkpoints within an epoch; 0: every update; null: none
    save_every_minutes: float | None = 10.0
    # updates between two points of the curves by step, in metrics.jsonl and W&B; 0: none; null:
    # about 50 points an epoch
    log_every_steps: int | None = None
    # minutes between two lines about an epoch under way, where there is no terminal to draw
    # a bar in; 0: every update; null: none
    log_every_minutes: float | None = 5.0
    # how many of the epochs that improved top-1, the last ones, keep their checkpoints, to be
    # averaged by `python -m mobilenet_exp average`
    keep_best: int = 0
    # whether W&B gets the checkpoints, as versions `best` and `last` of an artifact
    wandb_artifacts: bool = False
    # updates whose operators are traced, after the first 3, into the run's folder; 0: none
    profile: int = 0
    # whether torch.compile makes kernels of its own of the training's network; needs a C++
    # compiler, and minutes at the start
    compile: bool = False
    # whether a pass's kernels are recorded once and launched together: true, false, or auto:
    # on CUDA, for one process, images of one side and train.accumulate=1
    cuda_graphs: str = "false"
    # use only algorithms that give the same bits each time; slower on a GPU
    deterministic: bool = False
    # shrink the recipe to seconds on noise, to check that it runs
    smoke: bool = False


@dataclass(kw_only=True)
class Config:
    """What `train.py` composes."""

    model: ModelConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    data: DataConfig
    train: TrainConfig
    distill: DistillConfig = field(default_factory=DistillConfig)
    # weights to start from: a file of any known layout, torchvision:TAG or timm:ARCH.TAG
    weights: str | None = field(default=None, metadata=PATH)
    # the published weights that the file holds, where its keys cannot tell
    weights_like: str | None = field(default=None, metadata=HAS_WEIGHTS)
    # where the file holds several state dicts, the one to take, as state_dict or model.ema
    weights_key: str | None = field(default=None, metadata=HAS_WEIGHTS)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(kw_only=True)
class EvalModelConfig(ModelOptions):
    # registry name; null: the checkpoint's
    name: str | None = None


@dataclass(kw_only=True)
class EvalDataConfig(ImageSource):
    """What an evaluation is asked for; null: as the checkpoint or the weights' source has it."""

    # registry name; null: the checkpoint's own data
    name: str | None = None
    # side of the input in pixels, >= 32
    resolution: int | None = None
    # share of the resized image that is cropped from its centre, in (0, 1]
    crop_pct: float | None = None
    # method of that resizing: bilinear or bicubic
    interpolation: str | None = None
    # how pixels are resized: fast or exact
    resize: str | None = None
    # mean per colour channel, of pixels scaled to [0, 1]
    mean: list[float] | None = None
    # standard deviation per colour channel
    std: list[float] | None = None
    # photos whose EXIF data say that they lie on their side: apply, ignore or auto
    exif: str | None = field(default=None, metadata=FILES)
    # share of each class that is held out, where root holds class folders without a split
    val_share: float | None = None
    # seed of that choice
    val_seed: int | None = field(default=None, metadata=SPLIT)
    # images that are scored together; null: as many as the run trained
    # with, where its own data is scored, else 64
    batch_size: int | None = None
    # an image that cannot be read or has no label: skip leaves it out and names it, fail stops
    on_bad_image: str = field(default="skip", metadata=FILES)
    # whether to score against ImageNet-ReaL's labels too
    real_labels: bool = False


@dataclass(kw_only=True)
class EvalImages(ImagesConfig):
    """What an evaluation scores, once everything is settled; no program's own keys."""

    batch_size: int
    on_bad_image: str = field(default="skip", metadata=FILES)
    real_labels: bool


@dataclass(kw_only=True)
class WeightsConfig:
    """A network with its weights: one of `checkpoint` and `weights`."""

    # a run's checkpoint; it brings its model, data and preprocessing
    checkpoint: str | None = field(default=None, metadata=PATH)
    # whether to take a checkpoint's averaged weights, where it has them
    ema: bool = field(default=True, metadata=HAS_CHECKPOINT)
    # a file of any known layout, torchvision:TAG or timm:ARCH.TAG, which need model=; or an
    # exported file (.onnx, .xml, .pte, .pt2)
    weights: str | None = field(default=None, metadata=PATH)
    # the published weights that the file holds, where its keys cannot tell
    weights_like: str | None = field(default=None, metadata=HAS_WEIGHTS)
    # where the file holds several state dicts, the one to take, as state_dict or model.ema
    weights_key: str | None = field(default=None, metadata=HAS_WEIGHTS)
    model: EvalModelConfig = field(default_factory=EvalModelConfig)


@dataclass(kw_only=True)
class EvalConfig(WeightsConfig):
    """What `eval.py` composes: weights, and images or a data set to score them on."""

    # a photo, or a folder of photos, to classify instead of scoring a data set
    image: str | None = field(default=None, metadata=PATH)
    data: EvalDataConfig = field(default_factory=EvalDataConfig)
    run: EvalRunConfig = field(default_factory=EvalRunConfig)


@dataclass(kw_only=True)
class BenchConfig:
    """What `bench.py` composes."""

    # the networks, in the table's order: names of ours, torchvision:NAME, timm:NAME, a run's
    # checkpoint, an exported file; or mappings with their own side and options, as
    # {name: v3_small, width_mult: 0.5, resolution: 160}
    models: list[Any]
    # what runs them: eager (torch's operators, NCHW), folded (BatchNorm in the convolutions,
    # channels_last), compiled (torch.compile of that), cuda_graphs, compiled_cuda_graphs,
    # onnxruntime, openvino, executorch (XNNPACK)
    runtimes: list[str]
    # images that go through a network together
    batch_sizes: list[int]
    # side of the input in pixels, of networks that have none of their own
    resolution: int = 224
    # untimed forwards of each network at least; as many more, up to 10, until they are steady
    warmup: int
    # interleaved rounds; each network runs once a round in each runtime
    rounds: int
    # rounds, or one_call: beside it, what one call in training mode takes that nothing waits
    # for, as the old V1 repository timed
    method: str = "rounds"
    # a network of the table whose layers are timed one by one; null: none
    layers: str | None = None
    run: BenchRunConfig = field(default_factory=BenchRunConfig)


@dataclass(kw_only=True)
class PackConfig:
    """What `python -m mobilenet_exp pack` composes."""

    # the images to pack; how they are prepared for a network is not looked at
    data: ImagesConfig
    # new folder for the shards, or one that was begun with the same images and settings
    out: str = field(metadata=PATH)
    # shorter side in pixels to which larger images are made smaller, e.g. 256; null: files
    # stay as they are
    side: int | None = None
    # how smaller images are stored: jpeg, or raw: pixels, ten times as large and faster
    form: str = "jpeg"
    # JPEG's quality of smaller images
    quality: int = field(default=94, metadata=MAKES_SMALLER)
    # images of one shard
    shard_images: int = 4096
    # threads that read and make smaller; null: as many as cores
    threads: int | None = None


@dataclass(kw_only=True)
class ExportConfig(WeightsConfig):
    """What `python -m mobilenet_exp export` composes."""

    # form of the file: onnx, openvino, executorch (XNNPACK) or torch_export
    format: str = "onnx"
    # the file; null: in exported/ of the checkpoint's run, or in the current folder
    out: str | None = field(default=None, metadata=PATH)
    # side in pixels of the images that it takes; null: as the network was trained
    resolution: int | None = None
    # largest difference of an answer from the network's own, in shares of the largest answer;
    # null: 1e-4, of a network in 8 bits any
    tolerance: float | None = None
    # write it in 8 bits, with scales from images of data's training share
    int8: bool = False
    # bits of its weights: 7, right on every processor, or 8, for those with VNNI, AMX or Arm's
    # dot product; null: as the network learned (train.int8_weights), else 7, in executorch 8
    int8_weights: int | None = field(default=None, metadata=CALIBRATES)
    # so many of them
    calibration_images: int = field(default=300, metadata=CALIBRATES)
    # the data for it; null: the checkpoint's own
    data: EvalDataConfig = field(default_factory=EvalDataConfig)
    run: ExportRunConfig = field(default_factory=ExportRunConfig)


AnyConfig = Config | EvalConfig | BenchConfig | PackConfig | ExportConfig
