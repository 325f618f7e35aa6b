"""What a configuration builds: everything a training needs, in one place.

Prints nothing and logs nothing.
"""

from dataclasses import asdict, dataclass, field

import torch
from torch.nn.parallel import DistributedDataParallel

from mobilenet_exp.config.schema import Config
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data.loaders import Loaders, build_loaders
from mobilenet_exp.data.mixing import build_mixing
from mobilenet_exp.machine.device import memory_format, select_device
from mobilenet_exp.machine.distributed import Team
from mobilenet_exp.models import MobileNet
from mobilenet_exp.models.dialect import dialect_of
from mobilenet_exp.training.distillation import build_teacher
from mobilenet_exp.training.ema import Average
from mobilenet_exp.training.engine import Learner, Tally
from mobilenet_exp.training.optim import build_optimizer
from mobilenet_exp.training.schedule import build_schedule
from mobilenet_exp.training.synced_bn import synchronise_bn
from mobilenet_exp.weights.loading import read_weights
from mobilenet_exp.weights.networks import adopt_asked, config_model


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
    # accuracy after the last epoch, whether or not it was the best
    last_top1: float = 0.0
    # times that the epoch under way went back to a checkpoint
    rollbacks: int = 0


@dataclass
class Session:
    """A training in the making; only `learner`, `progress` and `tally` change."""

    config: Config
    team: Team
    loaders: Loaders
    num_classes: int
    learner: Learner
    progress: Progress = field(default_factory=Progress)
    # sums over the epoch that is under way, of this process
    tally: Tally = field(default_factory=Tally)
    # what there is to know of the weights it starts from, a line each
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> MobileNet:
        return self.learner.model

    @property
    def step(self) -> int:
        """Return the updates made so far."""
        return self.progress.epoch * self.loaders.order.num_updates + self.progress.update

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
        workers=config.run.workers,
        pin_memory=device.type == "cuda",
        rank=team.rank,
        processes=team.size,
    )
    num_classes = config.model.num_classes or len(loaders.classes)
    if num_classes < len(loaders.classes):
        raise InputError(
            "model.num_classes",
            num_classes,
            f"{config.data.name} has {len(loaders.classes)} classes; must be at least that",
        )
    if train.trainable == "classifier" and not config.weights and not config.run.smoke:
        allowed = "needs weights=..., whose features it looks at"
        raise InputError("train.trainable", train.trainable, allowed)
    torch.manual_seed(train.seed)
    model = config_model(config, num_classes)
    notes = _start_from_weights(model, config) if config.weights and is_new else ()
    learner = _build_learner(config, model, team, device, loaders, num_classes)
    return Session(config, team, loaders, num_classes, learner, notes=notes)


def connect(session: Session) -> None:
    """Join the gradients of all processes; every process of the team calls this."""
    if session.team.size > 1:
        session.learner.wrapped = DistributedDataParallel(session.model)


def _build_learner(
    config: Config,
    model: MobileNet,
    team: Team,
    device: torch.device,
    loaders: Loaders,
    num_classes: int,
) -> Learner:
    train, is_probe = config.train, config.train.trainable == "classifier"
    layout = memory_format(config.run.memory_format)
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
    return Learner(
        model=model,
        wrapped=model,
        optimizer=build_optimizer(model, **asdict(config.optimizer)),
        lr_at=build_schedule(
            **asdict(config.schedule),
            lr=config.optimizer.lr,
            epochs=train.epochs,
            steps_per_epoch=loaders.order.num_updates,
            seed=train.seed,
        ),
        loss_fn=torch.nn.CrossEntropyLoss(label_smoothing=train.label_smoothing),
        device=device,
        memory_format=layout,
        accumulate=train.accumulate,
        seed=train.seed,
        rank=team.rank,
        mixing=build_mixing(config.data, num_classes, train.seed),
        teacher=teacher.to(device) if teacher else None,
        average=average,
        clip_grad_norm=train.clip_grad_norm,
        frozen_bn=train.bn == "frozen" or is_probe,
        is_probe=is_probe,
        skips_nonfinite=train.on_nonfinite == "skip",
    )


def _start_from_weights(model: MobileNet, config: Config) -> tuple[str, ...]:
    weights = read_weights(config.weights, model, like=config.weights_like)
    left_out = weights.into(model, new_classifier=True)
    adopt_asked(model, config)
    words = dialect_of(model).words()
    notes = [f"starts from {weights.origin} ({weights.layout.title}): {words}", *left_out]
    theirs, ours = weights.preprocessing, config.data
    if (list(theirs.mean), list(theirs.std)) != (list(ours.mean), list(ours.std)):
        notes.append(
            f"these weights knew pixels of mean {theirs.mean} and std {theirs.std}; "
            f"data.mean is {ours.mean}, data.std {ours.std}"
        )
    return tuple(notes)
