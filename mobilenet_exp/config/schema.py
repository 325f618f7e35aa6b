"""The keys of every configuration; the comment above a key is its help text.

The sections `model data optimizer schedule train distill` and `weights` say what is
learned and give a run its name. `run`, and fields marked NOT_IDENTITY, say where and how.
Each program has a schema of its own, with exactly the keys that it reads.
"""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from typing import Any, NamedTuple

from mobilenet_exp.core.ranges import (
    ABOVE_0,
    ABOVE_0_TO_1,
    AUTO_OR_BOOL,
    BATCH_SIZES,
    BELOW_1,
    BITS,
    COUNT,
    FOLDER,
    FRACTION,
    FROM_0,
    INSIDE_0_1,
    MEAN,
    MODELS,
    NAMED,
    NOISE,
    PROJECT,
    QUALITY,
    RUNTIMES,
    SEED,
    SIDE,
    STD,
    STRIDE,
    UP_TO_1000,
    WHOLE,
    WIDTH,
    Range,
    one_of,
    up_to,
)

# marks of a key: it says where things are, not what is learned, and so is no part of a run's name
NOT_IDENTITY = "not_identity"
# it names a file or folder, in which ~ is the home folder
PATH = "path"
# it is part of a run's name even at the schema's default
ALWAYS = "always"


class Need(NamedTuple):
    """What a key needs to have any effect: its description, and a test of a configuration.

    Recipes may carry the key anywhere; a command that gives it where it has none is refused.
    """

    what: str
    is_met: Callable[[Any], bool]


def key(*marks: Range | Need | str, default: Any = MISSING, factory: Any = MISSING) -> Any:
    """Return a field with its range, its need and its marks, if it has them."""
    kinds = {Range: "range", Need: "need"}
    metadata = {kinds.get(type(mark), mark): mark for mark in marks}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


IN_MEMORY = ("digits", "fake", "noise")
ARRAYS = (*IN_MEMORY, "cifar10", "cifar100", "fashion_mnist", "svhn")
# sets that lie where the user has them, which nothing downloads
BROUGHT = ("imagefolder", "imagenet", "packed", "photos")
FILES = Need(
    "data of image files, e.g. data=imagefolder or data=imagenet",
    lambda config: config.data.name not in ARRAYS,
)
ROOT = Need(
    "data that lie in a folder, e.g. data=imagenet or data=imagefolder",
    lambda config: config.data.name not in IN_MEMORY,
)
DOWNLOAD = Need(
    "data that can be downloaded, e.g. data=cifar10 or data=food101",
    lambda config: config.data.name not in (*IN_MEMORY, *BROUGHT),
)
SPLIT = Need(
    "data.val_share",
    # of a checkpoint's own data, which are not known yet
    lambda config: config.data.val_share is not None or config.data.name is None,
)
CROPS = Need(
    "data.augment=random_resized_crop or inception",
    lambda config: config.data.augment not in ("pad_crop_flip", "affine", "none"),
)
ERASES = Need("data.random_erase above 0", lambda config: config.data.random_erase > 0)
MIXES = Need(
    "data.mixup or data.cutmix above 0",
    lambda config: config.data.mixup > 0 or config.data.cutmix > 0,
)
MIXES_BOTH = Need(
    "both data.mixup and data.cutmix above 0",
    lambda config: config.data.mixup > 0 and config.data.cutmix > 0,
)
OWN_NETWORK = Need(
    "a network of this repository", lambda config: getattr(config.model, "name", None) != "timm"
)
DECAYS = Need("optimizer.weight_decay above 0", lambda config: config.optimizer.weight_decay > 0)
WARMS_UP = Need("schedule.warmup_epochs above 0", lambda c: c.schedule.warmup_epochs > 0)
AVERAGES = Need("train.ema_decay", lambda config: config.train.ema_decay is not None)
QUANTISES = Need("train.quantise=int8", lambda config: config.train.quantise is not None)
SEVERAL = Need("run.devices above 1", lambda config: config.run.devices > 1)
READERS = Need(
    "readers: data of files, or run.workers above 0",
    lambda config: config.run.workers or (
        config.run.workers is None and config.data.name not in IN_MEMORY
    ),
)  # fmt: skip
CALIBRATES = Need("int8=true", lambda config: config.int8)
MAKES_SMALLER = Need(
    "side=PIXELS and form=jpeg", lambda config: config.side is not None and config.form == "jpeg"
)
HAS_CHECKPOINT = Need("checkpoint=FILE", lambda config: config.checkpoint is not None)
HAS_WEIGHTS = Need("weights=FILE", lambda config: config.weights is not None)

# keys of data that say how images are prepared for a network
PREPARATION = ("resolution", "crop_pct", "interpolation", "resize", "mean", "std")


@dataclass(kw_only=True)
class ModelOptions:
    """What tells one network from another, trained or not."""

    # width multiplier, the papers' alpha, > 0: multiplies the number of channels
    width_mult: float = key(WIDTH, default=1.0)
    # size of the classifier; null: the number of classes in the data
    num_classes: int | None = key(up_to(1_000_000), default=None)
    # stride of the first convolution, 1 or 2; null: 2 as in every paper, but 1 for training on
    # images below 64 px, which would otherwise shrink to a single pixel; pretrained weights
    # keep the stride that they were trained with
    stem_stride: int | None = key(STRIDE, OWN_NETWORK, default=None)
    # BatchNorm's epsilon; null: the paper's
    bn_eps: float | None = key(ABOVE_0, default=None)
    # options of one family of networks, e.g. activation for v1, head_width for v3
    args: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The network's name to show; for a network of timm, its name in timm."""
        return self.args.get("arch") or getattr(self, "name", None) or ""


@dataclass(kw_only=True)
class ModelConfig(ModelOptions):
    # registry name: v1, v2, v3_large, ...
    name: str
    # dropout probability before the classifier, in [0, 1); null: the paper's
    dropout: float | None = key(BELOW_1, default=None)
    # BatchNorm's momentum in PyTorch's sense, 1 - decay; null: the paper's
    bn_momentum: float | None = key(ABOVE_0_TO_1, default=None)
    # probability of dropping a block's branch in training: it rises from 0 at the first
    # block towards this value at the last
    stochastic_depth: float = key(BELOW_1, default=0.0)


@dataclass(kw_only=True)
class OptimizerConfig:
    # registry name: sgd, rmsprop (TensorFlow's rule), rmsprop_torch, adamw, lamb
    name: str
    # base learning rate, at the peak of the schedule
    lr: float = key(ABOVE_0)
    # L2 penalty, or decoupled decay for adamw and lamb
    weight_decay: float = key(UP_TO_1000)
    # whether weight decay also acts on biases and normalisation
    decay_norm_and_bias: bool = key(DECAYS, default=False)
    # whether weight decay acts on depthwise filters; V1's paper advises very
    # little or none
    decay_depthwise: bool = key(DECAYS, default=True)
    # further arguments of the optimizer, e.g. momentum
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class ScheduleConfig:
    # registry name: cosine, step, exponential, constant
    name: str
    # length of the linear warm-up, in epochs
    warmup_epochs: float = key(FROM_0, default=0.0)
    # fraction of lr that the warm-up starts from, in [0, 1)
    warmup_from: float = key(BELOW_1, WARMS_UP, default=0.0)
    # whether the schedule counts epochs from the start, not from the end of the warm-up
    counts_warmup: bool = key(WARMS_UP, default=False)
    # epochs at the end of the training that keep the schedule's last learning rate
    cooldown_epochs: float = key(FROM_0, default=0.0)
    # two fractions of the training, e.g. [0.42,0.9], between which each epoch's learning rate
    # varies at random, as in timm; null: no noise
    noise: list[float] | None = key(NOISE, default=None)
    # arguments of the schedule, e.g. gamma
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class ImageSource:
    """Where images are."""

    # folder of the images; null where the data needs none
    root: str | None = key(NOT_IDENTITY, PATH, ROOT, default=None)
    # whether the data may be downloaded into root
    download: bool = key(NOT_IDENTITY, DOWNLOAD, default=False)
    # file with the label of each image, for ImageNet's val/ as one flat folder
    labels: str | None = key(NAMED, NOT_IDENTITY, PATH, default=None)
    # options of one data set, e.g. num_images for fake
    args: dict[str, Any] = field(default_factory=dict)

    @property
    def is_imagenet(self) -> bool:
        """Whether these are ImageNet-1k's images and classes, as folders or as shards."""
        name = getattr(self, "name", None)
        is_packed = name == "packed" and self.args.get("classes") == "imagenet"
        return name == "imagenet" or is_packed


@dataclass(kw_only=True)
class Preprocessing:
    """How images are prepared for evaluation; the defaults are the usual ones for ImageNet.

    The shorter side is resized to resolution / crop_pct and the centre is cropped.
    """

    # side of the input in pixels, >= 32
    resolution: int = key(SIDE, ALWAYS, default=224)
    # fraction of the resized image that evaluation crops from its centre, in (0, 1]
    crop_pct: float = key(ABOVE_0_TO_1, ALWAYS, default=0.875)
    # method by which evaluation resizes: bilinear or bicubic
    interpolation: str = key(one_of("bilinear", "bicubic"), default="bilinear")
    # mean per colour channel, of pixels scaled to [0, 1]
    mean: list[float] = key(MEAN, ALWAYS, factory=lambda: [0.485, 0.456, 0.406])
    # standard deviation per colour channel
    std: list[float] = key(STD, ALWAYS, factory=lambda: [0.229, 0.224, 0.225])

    def describe(self) -> str:
        """Return it in one line."""
        return (
            f"{self.resolution} px, crop_pct {self.crop_pct:g}, {self.interpolation}, "
            f"mean {list(self.mean)}, std {list(self.std)}"
        )


@dataclass(kw_only=True)
class ImagesConfig(Preprocessing, ImageSource):
    """Which images, and how they are prepared for evaluation."""

    # registry name: digits, imagefolder, imagenet, packed, ...; --help lists conf/data
    name: str
    # how images are resized: fast, or exact, whose pixels are identical to Pillow's; the two
    # differ by at most 2 of 255, and not at all in nearly all pixels
    resize: str = key(one_of("fast", "exact"), default="fast")
    # orientation in a photo's EXIF data: apply turns the photo upright, ignore leaves it as it
    # is stored, auto ignores the orientation for ImageNet and applies it for other data
    exif: str = key(one_of("apply", "ignore", "auto"), FILES, default="ignore")
    # fraction of each class to hold out for validation, where root holds class folders
    # without train/ and val/; null: root has both
    val_share: float | None = key(INSIDE_0_1, default=None)
    # seed that decides which images val_share holds out
    val_seed: int = key(COUNT, SPLIT, default=0)


@dataclass(kw_only=True)
class DataConfig(ImagesConfig):
    """The images, and how a training batches, augments and mixes them."""

    # images of one update, over all processes
    batch_size: int = key(up_to(1_000_000), ALWAYS, default=256)
    # side of the input in training; null: the same as in evaluation
    train_resolution: int | None = key(SIDE, default=None)
    # progressive resizing: side of the input in the first epoch, which rises to the training's
    # side in the last; null: constant
    progressive_from: int | None = key(SIDE, default=None)
    # registry name of the training's augmentation: random_resized_crop, inception, pad_crop_flip,
    # affine, none
    augment: str = key(ALWAYS, default="random_resized_crop")
    # smallest fraction of the image's area that random_resized_crop and inception crop
    min_crop_area: float = key(ABOVE_0_TO_1, CROPS, default=0.08)
    # method by which training resizes: bilinear, bicubic, or random (one of the two for each
    # image)
    train_interpolation: str = key(one_of("bilinear", "bicubic", "random"), default="bilinear")
    # largest change of brightness, contrast and saturation, as a fraction; 0: none
    color_jitter: float = key(FRACTION, default=0.0)
    # augmentation policy: imagenet or cifar10 (AutoAugment), ta_wide (TrivialAugment), or
    # RandAugment in timm's notation, e.g. rand-m9-mstd0.5; null: none
    auto_augment: str | None = None
    # probability of erasing a rectangle of the image
    random_erase: float = key(FRACTION, default=0.0)
    # what the rectangle is filled with: const (the mean) or pixel (noise)
    erase_mode: str = key(one_of("const", "pixel"), ERASES, default="const")
    # alpha of mixup; 0: off
    mixup: float = key(UP_TO_1000, default=0.0)
    # alpha of cutmix; 0: off
    cutmix: float = key(UP_TO_1000, default=0.0)
    # probability that a batch is mixed at all
    mix_prob: float = key(FRACTION, MIXES, default=1.0)
    # probability that a mixed batch gets cutmix, where both mixup and cutmix are on
    cutmix_share: float = key(FRACTION, MIXES_BOTH, default=0.5)
    # epochs at the end of the training without mixup and cutmix
    mix_off_epochs: int = key(COUNT, MIXES, default=0)
    # repeated augmentation: how many times an image appears in an epoch; the epoch stays as
    # long, with fewer different images
    repeats: int = key(up_to(1000), default=1)
    # what to do with an image that cannot be read: fail stops the run, skip names the image
    # and trains on the next one instead
    on_bad_image: str = key(one_of("skip", "fail"), NOT_IDENTITY, FILES, default="fail")

    @property
    def mixes(self) -> bool:
        """Whether training batches are mixed."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(kw_only=True)
class TrainConfig:
    # number of passes over the training images
    epochs: int = key(up_to(1_000_000))
    # seed of weights, order, augmentation and dropout
    seed: int = key(SEED, default=0)
    # registry name: cross_entropy, or bce (binary cross-entropy of each class)
    loss: str = "cross_entropy"
    # probability mass spread over all classes, in [0, 1)
    label_smoothing: float = key(BELOW_1, default=0.0)
    # training batches from which BatchNorm's statistics are re-estimated before each
    # evaluation; 0: use the running averages as they are
    precise_bn_batches: int = key(COUNT, default=0)
    # epochs between two evaluations; the last epoch is always evaluated
    eval_every: int = key(WHOLE, default=1)
    # largest norm of all gradients together; null: they are not clipped
    clip_grad_norm: float | None = key(ABOVE_0, default=None)
    # gradient accumulation: parts that a batch is divided into, computed one after the other;
    # BatchNorm sees each part alone
    accumulate: int = key(up_to(1_000_000), default=1)
    # statistics that BatchNorm normalises by in training: batch (of each process's own images),
    # sync (of the images of all processes), frozen (those that the training starts from)
    bn: str = key(one_of("batch", "sync", "frozen"), default="batch")
    # which weights are trained: all, or classifier (a linear probe on given weights)
    trainable: str = key(one_of("all", "classifier"), default="all")
    # decay of the exponential moving average (EMA) of weights and BatchNorm statistics, e.g.
    # 0.9999; null: no average
    ema_decay: float | None = key(INSIDE_0_1, default=None)
    # updates of the weights between two updates of this average
    ema_every: int = key(WHOLE, AVERAGES, default=1)
    # whether the average's decay rises from 0, so that it forgets the initial weights in a
    # short run
    ema_warmup: bool = key(AVERAGES, default=True)
    # int8: quantisation-aware training, with fake-quantised weights and activations; null: none
    quantise: str | None = key(one_of("int8"), default=None)
    # bits of the int8 network's weights: 7, correct on every processor, or 8, correct only on
    # one with VNNI, AMX or Arm's dot product
    int8_weights: int = key(BITS, QUANTISES, default=7)
    # what to do when a loss is not finite: stop, skip (leave out the update), or rollback
    # (return to the last checkpoint and continue after the images that failed)
    on_nonfinite: str = key(one_of("stop", "skip", "rollback"), default="stop")


@dataclass(kw_only=True)
class DistillConfig:
    # the teacher network: a checkpoint, a weights file, torchvision:TAG or timm:ARCH.TAG
    teacher: str | None = key(NAMED, PATH, default=None)
    # the teacher's model name, where teacher is a weights file or torchvision:TAG
    model: str | None = key(NAMED, default=None)
    # the teacher's width multiplier
    width_mult: float = key(WIDTH, default=1.0)
    # temperature that softens the outputs of teacher and student, > 0
    temperature: float = key(ABOVE_0, default=1.0)
    # weight of the teacher's term in the loss, in [0, 1]
    share: float = key(FRACTION, default=0.5)


@dataclass(kw_only=True)
class ExportRunConfig:
    # modules of your own to import first; they register models, data sets, optimizers, ...
    imports: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class BenchRunConfig(ExportRunConfig):
    # device to compute on: auto, cpu, cuda, mps
    device: str = key(one_of("auto", "cpu", "cuda", "mps"), default="auto")
    # CPU threads of each process; null: torch's default, divided among the processes of this
    # machine; training and evaluation then use fewer while other programs keep cores busy
    threads: int | None = key(up_to(4096), default=None)
    # arithmetic precision: float32, tf32 (CUDA's rounded float32), bfloat16, float16, or auto:
    # bfloat16 for training on CUDA (float16 if the GPU only emulates bfloat16), else float32
    precision: str = key(one_of("auto", "float32", "tf32", "bfloat16", "float16"), default="auto")
    # keep freed memory for the next batch (Linux, CPU): faster, but more memory is held
    keep_memory: bool = True
    # folder that holds the runs, sweeps, benchmarks and W&B's files
    root: str = key(FOLDER, PATH, default="runs")
    # Weights & Biases: online, offline, disabled, or auto (online where there are an API key
    # and an internet connection, else offline)
    wandb: str = key(one_of("auto", "online", "offline", "disabled"), default="auto")
    # the project in Weights & Biases; null: WANDB_PROJECT, else mobilenet_exp
    wandb_project: str | None = key(PROJECT, default=None)


@dataclass(kw_only=True)
class EvalRunConfig(BenchRunConfig):
    # more metrics of the validation images, beside top1, top5, loss and ece: mean_class_top1
    # (all classes count equally), or those that your own modules register
    metrics: list[str] = field(default_factory=list)
    # whether to draw pictures into the run's folder: curves, the first training batch, the
    # images with the worst predictions
    pictures: bool = True
    # loading processes of each process that trains or evaluates; 0: that process reads the
    # images itself; null: with a GPU as many as it has cores; on a CPU 0 for data in memory,
    # else half of its cores, at most 4
    workers: int | None = key(up_to(1024, least=0), default=None)
    # seconds that reading one image may take; after them the run stops and names the image;
    # null: no limit
    image_timeout: float | None = key(ABOVE_0, READERS, default=300.0)
    # memory layout of images and weights: channels_last (faster nearly everywhere),
    # contiguous, or auto: channels_last, but contiguous on MPS
    memory_format: str = key(one_of("auto", "channels_last", "contiguous"), default="auto")


@dataclass(kw_only=True)
class RunConfig(EvalRunConfig):
    # processes that train together on this machine, each on a GPU of its own if there are GPUs
    devices: int = key(up_to(1024), default=1)
    # how often these processes are all restarted from the last checkpoint after one has died
    max_restarts: int = key(COUNT, SEVERAL, default=1)
    # whether to lock the run's folder against other processes; false: for a file system that
    # cannot lock files, if no other job writes there
    lock: bool = True
    # minutes between two checkpoints within an epoch; 0: after every update; null: only at the
    # end of an epoch
    save_every_minutes: float | None = key(FROM_0, default=10.0)
    # updates between two points of the curves over steps, in metrics.jsonl and W&B; 0: no such
    # curves; null: about 50 points an epoch
    log_every_steps: int | None = key(COUNT, default=None)
    # minutes between two progress lines within an epoch, where the output is no terminal, which
    # shows a progress bar; 0: after every update; null: no lines
    log_every_minutes: float | None = key(FROM_0, default=5.0)
    # number of checkpoints to keep of epochs that improved top-1, the latest ones; `python -m
    # mobilenet_exp average` averages them
    keep_best: int = key(COUNT, default=0)
    # whether to upload the checkpoints to W&B, as versions `best` and `last` of an artifact
    wandb_artifacts: bool = False
    # number of updates, after the first 3, that torch's profiler traces into the run's folder;
    # 0: no trace
    profile: int = key(up_to(100, least=0), default=0)
    # whether to compile the network for training with torch.compile; needs a C++ compiler, and
    # takes minutes at the start
    compile: bool = False
    # whether to record the kernels of forward and backward passes as CUDA graphs, and launch
    # them together: true, false, or auto (true on CUDA with one process, images of one side,
    # train.accumulate=1 and train.quantise=null)
    cuda_graphs: str = key(AUTO_OR_BOOL, default="false")
    # use only algorithms that give the same bits each time; slower on a GPU
    deterministic: bool = False
    # shrink the run to seconds, on images of noise, to check that the configuration works
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
    weights: str | None = key(NAMED, PATH, default=None)
    # name of the published weights in the file, e.g. timm:ARCH.TAG, where its tensors' names do
    # not tell
    weights_like: str | None = key(NAMED, HAS_WEIGHTS, default=None)
    # the state dict to take from a file that holds several, e.g. state_dict or model.ema
    weights_key: str | None = key(NAMED, HAS_WEIGHTS, default=None)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(kw_only=True)
class EvalModelConfig(ModelOptions):
    # registry name; null: the checkpoint's
    name: str | None = None


@dataclass(kw_only=True)
class EvalDataConfig(ImageSource):
    """The images of an evaluation; null: as the checkpoint or the weights' source has it."""

    # registry name; null: the checkpoint's own data
    name: str | None = None
    # side of the input in pixels, >= 32
    resolution: int | None = key(SIDE, default=None)
    # fraction of the resized image that is cropped from its centre, in (0, 1]
    crop_pct: float | None = key(ABOVE_0_TO_1, default=None)
    # method by which images are resized: bilinear or bicubic
    interpolation: str | None = key(one_of("bilinear", "bicubic"), default=None)
    # how images are resized: fast, or exact as Pillow
    resize: str | None = key(one_of("fast", "exact"), default=None)
    # mean per colour channel, of pixels scaled to [0, 1]
    mean: list[float] | None = key(MEAN, default=None)
    # standard deviation per colour channel
    std: list[float] | None = key(STD, default=None)
    # orientation in a photo's EXIF data: apply, ignore or auto
    exif: str | None = key(one_of("apply", "ignore", "auto"), FILES, default=None)
    # fraction of each class that is held out, where root holds class folders without a split
    val_share: float | None = key(INSIDE_0_1, default=None)
    # seed that decides which images val_share holds out
    val_seed: int | None = key(COUNT, SPLIT, default=None)
    # images per batch; null: the batch size of the run where its own data is scored, else 64
    batch_size: int | None = key(up_to(1_000_000), default=None)
    # what to do with an image that cannot be read or has no label: skip leaves it out and names
    # it, fail stops
    on_bad_image: str = key(one_of("skip", "fail"), FILES, default="skip")
    # whether to score against ImageNet-ReaL's labels too
    real_labels: bool = False


@dataclass(kw_only=True)
class EvalImages(ImagesConfig):
    """The images that an evaluation scores, with all values resolved; no program reads it."""

    batch_size: int = key(up_to(1_000_000))
    on_bad_image: str = key(one_of("skip", "fail"), FILES, default="skip")
    real_labels: bool


@dataclass(kw_only=True)
class WeightsConfig:
    """A network with its weights: one of `checkpoint` and `weights`."""

    # a run's checkpoint, with its model, data and preprocessing
    checkpoint: str | None = key(NAMED, PATH, default=None)
    # whether to take a checkpoint's averaged weights, where it has them
    ema: bool = key(HAS_CHECKPOINT, default=True)
    # a file of any known layout, torchvision:TAG or timm:ARCH.TAG, which need model=; or an
    # exported file (.onnx, .xml, .pte, .pt2)
    weights: str | None = key(NAMED, PATH, default=None)
    # name of the published weights in the file, e.g. timm:ARCH.TAG, where its tensors' names do
    # not tell
    weights_like: str | None = key(NAMED, HAS_WEIGHTS, default=None)
    # the state dict to take from a file that holds several, e.g. state_dict or model.ema
    weights_key: str | None = key(NAMED, HAS_WEIGHTS, default=None)
    model: EvalModelConfig = field(default_factory=EvalModelConfig)


@dataclass(kw_only=True)
class EvalConfig(WeightsConfig):
    """What `eval.py` composes: weights, and images or a data set to score them on."""

    # a photo, or a folder of photos, to classify instead of scoring a data set
    image: str | None = key(NAMED, PATH, default=None)
    data: EvalDataConfig = field(default_factory=EvalDataConfig)
    run: EvalRunConfig = field(default_factory=EvalRunConfig)


@dataclass(kw_only=True)
class BenchConfig:
    """What `bench.py` composes."""

    # the networks, in the table's order: this repository's names (v2, ...), torchvision:NAME,
    # timm:NAME, a run's checkpoint, an exported file; or mappings with a resolution and options
    # of their own, e.g. {name: v3_small, width_mult: 0.5, resolution: 160}
    models: list[Any] = key(MODELS)
    # the runtimes: eager (torch's operators, NCHW), folded (BatchNorm in the convolutions,
    # channels_last), compiled (torch.compile of that), cuda_graphs, compiled_cuda_graphs,
    # onnxruntime, openvino, executorch (XNNPACK)
    runtimes: list[str] = key(RUNTIMES)
    # batch sizes to time
    batch_sizes: list[int] = key(BATCH_SIZES)
    # side of the input in pixels, for networks that set none of their own
    resolution: int = key(SIDE, default=224)
    # least number of untimed forward passes of each network; up to 10 more follow, until their
    # time is stable
    warmup: int = key(up_to(1_000_000, least=0))
    # number of rounds; in each of them every network takes one turn in every runtime
    rounds: int = key(up_to(1_000_000))
    # rounds, or one_call, which adds the method of the old V1 repository: one call in training
    # mode, without waiting for the device
    method: str = key(one_of("rounds", "one_call"), default="rounds")
    # a network of the table whose layers are timed one by one; null: none
    layers: str | None = key(NAMED, default=None)
    run: BenchRunConfig = field(default_factory=BenchRunConfig)


@dataclass(kw_only=True)
class PackConfig:
    """What `python -m mobilenet_exp pack` composes."""

    # the images to pack; their preparation for a network has no effect here
    data: ImagesConfig
    # folder for the shards: a new one, or that of an interrupted command with the same images
    # and settings
    out: str = key(PATH)
    # pixels to which the shorter side of larger images is resized, e.g. 256; null: images keep
    # their size, and with form=jpeg their files are packed unchanged
    side: int | None = key(SIDE, default=None)
    # how images are stored: jpeg, or raw (uncompressed pixels, ten times as large, faster to
    # read)
    form: str = key(one_of("jpeg", "raw"), default="jpeg")
    # JPEG quality of resized images
    quality: int = key(QUALITY, MAKES_SMALLER, default=94)
    # images per shard
    shard_images: int = key(WHOLE, default=4096)
    # threads that read and resize images; null: one per core
    threads: int | None = key(WHOLE, default=None)


@dataclass(kw_only=True)
class ExportConfig(WeightsConfig):
    """What `python -m mobilenet_exp export` composes."""

    # file format: onnx, openvino, executorch (XNNPACK) or torch_export
    format: str = key(one_of("onnx", "openvino", "executorch", "torch_export"), default="onnx")
    # file to write; null: a file in exported/ of the checkpoint's run, or for weights= in the
    # current folder
    out: str | None = key(PATH, default=None)
    # side of the file's input in pixels; null: that of the network
    resolution: int | None = key(SIDE, default=None)
    # largest allowed difference between the outputs of the file and of the network, as a
    # fraction of the largest output; null: 1e-4, for int8 no limit
    tolerance: float | None = key(ABOVE_0, default=None)
    # whether to write an int8 file; its scales come from training images, or from the training
    # with train.quantise
    int8: bool = False
    # bits of the int8 file's weights: 7, correct on every processor, or 8, correct only on one
    # with VNNI, AMX or Arm's dot product; null: as the network was trained
    # (train.int8_weights), else 7, or 8 for executorch
    int8_weights: int | None = key(BITS, CALIBRATES, default=None)
    # number of training images from which int8 scales are computed
    calibration_images: int = key(up_to(1_000_000), CALIBRATES, default=300)
    # data set of the calibration images; null: the checkpoint's own
    data: EvalDataConfig = field(default_factory=EvalDataConfig)
    run: ExportRunConfig = field(default_factory=ExportRunConfig)


AnyConfig = Config | EvalConfig | BenchConfig | PackConfig | ExportConfig
