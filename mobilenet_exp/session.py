"""What a configuration builds, one epoch of it, and how it is saved and resumed.

Prints nothing and logs nothing.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobilenet_exp import engine
from mobilenet_exp.checkpoint import load_checkpoint, restore_model, save_checkpoint
from mobilenet_exp.config import to_dict
from mobilenet_exp.data import Loaders, build_loaders
from mobilenet_exp.errors import InputError
from mobilenet_exp.models import MobileNet, build_model
from mobilenet_exp.models.dialect import adopt, dialect_of
from mobilenet_exp.optim import build_optimizer
from mobilenet_exp.schedule import build_schedule
from mobilenet_exp.schema import Config, EvalConfig
from mobilenet_exp.weights import read_weights


@dataclass
class Progress:
    """How far a run has come; saved in every checkpoint."""

    # epochs completed, updates made, seconds spent
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    # the best epoch so far and its accuracy in percent; 0: none yet
    best_epoch: int = 0
    top1: float = 0.0
    top5: float = 0.0
    # accuracy after the last epoch, whether or not it was the best
    last_top1: float = 0.0


@dataclass
class Session:
    """A training in the making; only the weights, the optimizer and `progress` change."""

    config: Config
    device: torch.device
    loaders: Loaders
    num_classes: int
    model: MobileNet
    optimizer: torch.optim.Optimizer
    lr_at: Callable[[int], float]
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    progress: Progress
    # what there is to know of the weights it starts from, a line each
    notes: tuple[str, ...] = ()


def build_session(config: Config, *, is_new: bool = True) -> Session:
    """Build everything a run needs from its config, weights seeded by `train.seed`.

    A new run starts from `weights` where they are given; one that is resumed has its
    own, and does not read them again.
    """
    device = engine.select_device(config.run.device)
    loaders = build_loaders(
        config.data,
        seed=config.train.seed,
        workers=config.run.workers,
        pin_memory=device.type == "cuda",
    )
    num_classes = config.model.num_classes or len(loaders.classes)
    if num_classes < len(loaders.classes):
        raise InputError(
            "model.num_classes",
            num_classes,
            f"{config.data.name} has {len(loaders.classes)} classes; must be at least that",
        )
    torch.manual_seed(config.train.seed)
    model = config_model(config, num_classes)
    notes = _start_from_weights(model, config) if config.weights and is_new else ()
    model = model.to(device)
    return Session(
        config=config,
        device=device,
        loaders=loaders,
        num_classes=num_classes,
        model=model,
        optimizer=build_optimizer(model, **asdict(config.optimizer)),
        lr_at=build_schedule(
            **asdict(config.schedule),
            lr=config.optimizer.lr,
            epochs=config.train.epochs,
            steps_per_epoch=len(loaders.train),
        ),
        loss_fn=nn.CrossEntropyLoss(label_smoothing=config.train.label_smoothing),
        progress=Progress(),
        notes=notes,
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


def adopt_asked(model: MobileNet, config: Config | EvalConfig) -> None:
    """Let a BN eps or an activation that the config gives win over the weights' own."""
    dialect = dialect_of(model)
    asked = {"bn_eps": config.model.bn_eps, "activation": config.model.args.get("activation")}
    adopt(model, replace(dialect, **{key: value for key, value in asked.items() if value}))


def config_model(config: Config | EvalConfig, num_classes: int) -> MobileNet:
    """Build the network that a config asks for, on the CPU."""
    options = asdict(config.model) | {"num_classes": num_classes}
    args = options.pop("args")
    return build_model(**options, **args)


def run_epoch(
    session: Session, show: Callable[[Iterable, str, int], Iterable]
) -> tuple[dict[str, float], bool]:
    """Train and evaluate one epoch; return its metrics and whether it is the best so far.

    `show(batches, label, total)` passes batches on and may draw a bar. The order of
    images, augmentation and dropout follow from (seed, epoch): a resumed run repeats them.
    """
    train, progress, loaders = session.config.train, session.progress, session.loaders
    started = time.perf_counter()
    epoch = progress.epoch + 1
    torch.manual_seed(train.seed * 1_000_003 + epoch)
    loaders.train_sampler.set_epoch(epoch)
    learned = engine.train_one_epoch(
        session.model,
        show(loaders.train, f"epoch {epoch}", len(loaders.train)),
        session.optimizer,
        session.lr_at,
        loss_fn=session.loss_fn,
        device=session.device,
        first_step=progress.step,
    )
    if train.precise_bn_batches:
        engine.reestimate_bn(
            session.model, loaders.train, session.device, num_batches=train.precise_bn_batches
        )
    scores = engine.evaluate(session.model, loaders.val, session.device)
    progress.epoch = epoch
    progress.step += learned.pop("num_steps")
    progress.seconds += time.perf_counter() - started
    progress.last_top1 = scores["top1"]
    is_best = progress.best_epoch == 0 or scores["top1"] > progress.top1
    if is_best:
        progress.best_epoch = epoch
        progress.top1, progress.top5 = scores["top1"], scores["top5"]
    metrics = {f"train/{key}": value for key, value in learned.items()}
    return metrics | {f"val/{key}": value for key, value in scores.items()}, is_best


def save(session: Session, folder: Path, *, is_best: bool) -> None:
    """Write `last.pt`, and `best.pt` where this epoch is the best, into `folder`."""
    state: dict[str, Any] = {
        "config": to_dict(session.config),
        "images": session.loaders.identity(),
        "classes": session.loaders.classes,
        "num_classes": session.num_classes,
        "epoch": session.progress.epoch,
        "progress": asdict(session.progress),
        "dialect": asdict(dialect_of(session.model)),
        "model": session.model.state_dict(),
        "optimizer": session.optimizer.state_dict(),
    }
    if is_best:
        save_checkpoint(folder / "best.pt", state)
    save_checkpoint(folder / "last.pt", state)


def resume(session: Session, folder: Path) -> None:
    """Take up `last.pt` of `folder` if it is there: the state after a whole epoch.

    Raises InputError if it cannot be read or was begun on other images.
    """
    path = folder / "last.pt"
    if not path.exists():
        return
    state = load_checkpoint(path)
    check_images(session, state["images"], path)
    restore_model(session.model, state, path)
    session.optimizer.load_state_dict(state["optimizer"])
    session.progress = Progress(**state["progress"])


def check_images(session: Session, images: dict[str, Any], path: Path) -> None:
    """Refuse to go on with what `path` holds if it is of other images than the session's."""
    if images != session.loaders.identity():
        allowed = f"holds other images than {path} is of; another run.root begins anew"
        raise InputError("data.root", session.config.data.root, allowed)
