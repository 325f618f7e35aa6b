"""What a configuration builds: everything a training needs, in one place.

Prints nothing and logs nothing.
"""

from dataclasses import asdict, dataclass, field, replace

import torch

from mobilenet_exp.config.schema import Config
from mobilenet_exp.core.errors import InputError, NonFiniteLossError, RunError, known_to_all
from mobilenet_exp.core.text import examples, plural
from mobilenet_exp.data.loaders import LoaderOptions, Loaders, build_loaders
from mobilenet_exp.data.mixing import build_mixing
from mobilenet_exp.machine.arithmetic import Precision, memory_format, select_precision
from mobilenet_exp.machine.device import select_device
from mobilenet_exp.machine.distributed import Team
from mobilenet_exp.models import MobileNet
from mobilenet_exp.models.rounding import Rounding, check_device
from mobilenet_exp.training.distillation import build_teacher
from mobilenet_exp.training.ema import Average
from mobilenet_exp.training.engine import Learner, TrainMeter
from mobilenet_exp.training.losses import build_loss
from mobilenet_exp.training.optim import build_optimizer
from mobilenet_exp.training.pace import Pace
from mobilenet_exp.training.schedule import build_schedule
from mobilenet_exp.training.signals import Signals
from mobilenet_exp.training.synced_bn import synchronise_bn
from mobilenet_exp.training.wrapping import wrap
from mobilenet_exp.weights.loaded import adopt_asked, config_model, weights_and_model
from mobilenet_exp.weights.loading import Weights


@dataclass
class Progress:
    """How far a run has come; saved in every checkpoint."""

    # epochs completed, updates made in the one after them, seconds spent
    epoch: int = 0
    update: int = 0
    seconds: float = 0.0
    # the best epoch so far and its accuracy in percent; 0: none yet
    best_epoch: int = 0
    top1: float = 0.0
    top5: float = 0.0
    # accuracy after the last epoch that was evaluated, whether or not it was the best
    last_top1: float = 0.0
    # how often the current epoch went back to a checkpoint
    rollbacks: int = 0
    # images that were left out because they could not be read, with the reason
    left_out: dict[str, str] = field(default_factory=dict)

    def words(self) -> str:
        """Say where the run stands: `after epoch 2`, or `after epoch 2, update 5`; or nothing."""
        if not self.epoch and not self.update:
            return ""
        return f"after epoch {self.epoch}" + (f", update {self.update}" if self.update else "")

    def complete_epoch(self, scores: dict[str, float] | None) -> bool:
        """Count an epoch, and return whether its scores are the best so far; None: it has none."""
        self.epoch, self.update, self.rollbacks = self.epoch + 1, 0, 0
        if scores is None:
            return False
        self.last_top1 = scores["top1"]
        is_best = self.best_epoch == 0 or scores["top1"] > self.top1
        if is_best:
            self.best_epoch, self.top1, self.top5 = self.epoch, scores["top1"], scores["top5"]
        return is_best


@dataclass
class Session:
    """A training under way; what is configured stays, how far it is changes.

    `config` is what runs: settings that were left open are filled in.
    """

    config: Config
    team: Team
    loaders: Loaders
    num_classes: int
    learner: Learner
    signals: Signals
    eval_precision: Precision = Precision.FLOAT32
    progress: Progress = field(default_factory=Progress)
    # sums over the current epoch, of this process
    meter: TrainMeter = field(default_factory=TrainMeter)
    pace: Pace = field(default_factory=Pace)
    # why this process could not load its images
    problem: InputError | RunError | None = None
    # what there is to know about the weights it starts from, a line each
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> MobileNet:
        return self.learner.model

    @property
    def step(self) -> int:
        """Return the updates made so far."""
        return self.progress.epoch * self.loaders.sampler.num_updates + self.progress.update

    @property
    def to_come(self) -> tuple[int, int, int]:
        """Return what `Pace` asks for: updates and epochs to come, and an epoch's updates."""
        whole = self.loaders.sampler.num_updates
        epochs = self.config.train.epochs - self.progress.epoch - 1
        return whole - self.progress.update, epochs, whole

    @property
    def last_lr(self) -> float:
        """Return the learning rate of the last update."""
        return self.learner.lr_at(max(self.step - 1, 0))


def build_session(config: Config, team: Team | None = None, *, is_new: bool = True) -> Session:
    """Build everything a run needs from its config, weights seeded by `train.seed`.

    A new run starts from `weights` where they are given; one that is resumed has its own.
    """
    team = team or Team()
    device = select_device(config.run.device)
    train = config.train
    loaders = build_loaders(
        config.data,
        seed=train.seed,
        epochs=train.epochs,
        accumulate=train.accumulate,
        rank=team.rank,
        processes=team.size,
        options=LoaderOptions(device, config.run.workers, config.run.image_timeout, team.sharing),
    )
    # before this process holds memory
    loaders.start_workers()
    num_classes = _num_classes(config, loaders)
    if train.trainable == "classifier" and not config.weights and not config.run.smoke:
        problem = "trains only the classifier, so it needs pretrained weights=..."
        raise InputError("train.trainable", train.trainable, problem)
    torch.manual_seed(train.seed)
    model, notes = _build_model(config, num_classes, is_new=is_new)
    stem_stride = model.stem.conv.stride[0]
    config = replace(config, model=replace(config.model, stem_stride=stem_stride))
    return Session(
        config,
        team,
        loaders,
        num_classes,
        _build_learner(config, model, team, device, loaders, num_classes),
        Signals(team),
        eval_precision=select_precision(config.run.precision, device, is_training=False),
        notes=(*notes, *_passed_over(loaders)),
    )


def _passed_over(loaders: Loaders) -> list[str]:
    if not loaders.others:
        return []
    count = plural(len(loaders.others), "file")
    return [f"{count} passed over, no images: {examples(loaders.others)}"]


def _num_classes(config: Config, loaders: Loaders) -> int:
    num_classes = config.model.num_classes or len(loaders.classes)
    if num_classes < len(loaders.classes):
        problem = f"must be at least the {len(loaders.classes)} classes of {config.data.name}"
        raise InputError("model.num_classes", num_classes, problem)
    return num_classes


def describe_task(session: Session) -> str:
    """Say what is about to be trained; alike in all processes of a team, unless it is alone."""
    loaders = session.loaders
    if session.team.size == 1:
        return ""
    counts = f"{loaders.num_train} + {loaders.num_val} images"
    words = f"{counts} of {plural(len(loaders.classes), 'class')}"
    return f"{words}; {loaders.fingerprint()}"


def connect(session: Session) -> None:
    """Put around the network what the run asks for; every process of the team calls this."""
    sampler, epochs = session.loaders.sampler, session.config.train.epochs
    sides = {sampler.side_at(epoch) for epoch in range(1, epochs + 1)}
    wrap(session.learner, session.config, session.team.size, sides, sampler.part_size)


def check_finite(session: Session) -> None:
    """Raise NonFiniteLossError in all processes if a loss so far was not finite in one.

    Waits for the device and for the other processes.
    """
    (is_bad,) = session.team.any(not session.meter.loss_sum.isfinite().item())
    if is_bad:
        raise not_finite(session, session.step - 1)


def not_finite(session: Session, step: int) -> NonFiniteLossError:
    """Return what all processes raise for a loss that was not finite."""
    where = f"epoch {session.progress.epoch + 1}, step {step}"
    problem = f"the loss is not finite at {where}, lr {session.learner.lr_at(step):.3g}"
    return known_to_all(NonFiniteLossError(problem))


def check_loaded(session: Session) -> None:
    """Raise in all processes what kept one of them from loading its images."""
    problems = [each for each in session.team.gather(session.problem) if each]
    if problems:
        raise known_to_all(problems[0])


def _build_model(
    config: Config, num_classes: int, *, is_new: bool
) -> tuple[MobileNet, tuple[str, ...]]:
    """Build the network, with given weights in it where a new run starts from some."""
    is_settled = config.model.stem_stride is not None
    if not config.weights or (is_settled and not is_new):
        return config_model(config.model, num_classes), ()
    weights, model = weights_and_model(
        config.weights,
        config.model,
        num_classes,
        like=config.weights_like,
        key=config.weights_key,
    )
    if not is_new:
        return model, ()
    left_out = weights.into(model, new_classifier=True)
    adopt_asked(model, config.model)
    return model, (*_describe(weights, model, config), *left_out)


def _describe(weights: Weights, model: MobileNet, config: Config) -> list[str]:
    """Say what the run starts from, and what is unlike in its data."""
    stem = model.stem.conv.stride[0]
    words = f"{model.dialect.words()}, stem stride {stem}"
    notes = [f"starts from {weights.origin} ({weights.layout.title}): {words}"]
    theirs, ours = weights.preprocessing, config.data
    if (list(theirs.mean), list(theirs.std)) != (list(ours.mean), list(ours.std)):
        notes.append(
            f"the weights were trained with mean {theirs.mean} and std {theirs.std}; "
            f"data.mean is {ours.mean}, data.std {ours.std}"
        )
    return notes


def _build_learner(
    config: Config,
    model: MobileNet,
    team: Team,
    device: torch.device,
    loaders: Loaders,
    num_classes: int,
) -> Learner:
    train, is_probe = config.train, config.train.trainable == "classifier"
    layout = memory_format(config.run.memory_format, device)
    model = model.to(device, memory_format=layout)
    if is_probe:
        model.requires_grad_(False)
        model.classifier.requires_grad_(True)
    if train.bn == "sync" and team.size > 1:
        model = synchronise_bn(model, device)
    average = None
    if train.ema_decay is not None:
        average = Average(
            model, decay=train.ema_decay, every=train.ema_every, warmup=train.ema_warmup
        )
    teacher = build_teacher(config, loaders.classes, num_classes)
    # what is rounded to 8 bits is not rounded to 16 before
    in_half = train.quantise is None
    precision = select_precision(config.run.precision, device, is_training=in_half)
    rounding = None
    if train.quantise:
        check_device(device)
        rounding = Rounding(model, weight_bits=train.int8_weights).to(device)
    scaler = torch.amp.GradScaler(device.type) if precision.needs_scaler else None
    return Learner(
        model=model,
        wrapped=rounding or model,
        optimizer=build_optimizer(model, **asdict(config.optimizer)),
        lr_at=build_schedule(
            **asdict(config.schedule),
            lr=config.optimizer.lr,
            epochs=train.epochs,
            steps_per_epoch=loaders.sampler.num_updates,
            seed=train.seed,
        ),
        loss_fn=build_loss(train.loss, train.label_smoothing),
        device=device,
        memory_format=layout,
        precision=precision,
        scaler=scaler,
        accumulate=train.accumulate,
        seed=train.seed,
        rank=team.rank,
        mixing=build_mixing(
            config.data,
            num_classes,
            train.seed,
            epochs=train.epochs,
            steps_per_epoch=loaders.sampler.num_updates,
        ),
        teacher=teacher.to(device) if teacher else None,
        average=average,
        rounding=rounding,
        clip_grad_norm=train.clip_grad_norm,
        frozen_bn=train.bn == "frozen" or is_probe,
        is_probe=is_probe,
        skips_nonfinite=train.on_nonfinite == "skip",
    )
