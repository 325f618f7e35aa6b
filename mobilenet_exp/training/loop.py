"""The epochs of a run, from top to bottom: updates, evaluation, checkpoint.

Prints and writes nothing itself: `record` does that, and `checkpointer` saves. Both are
alike in every process; in all but the first one they are silent.
"""

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mobilenet_exp.core.console import Show
from mobilenet_exp.core.errors import InputError, NonFiniteLossError, RunError, known_to_all
from mobilenet_exp.core.text import duration
from mobilenet_exp.data.loaders import BAD_IMAGE_ADVICE, Batch
from mobilenet_exp.datasets.images import name_of
from mobilenet_exp.evaluation import metrics
from mobilenet_exp.evaluation.metrics import Predictions
from mobilenet_exp.evaluation.predict import predict
from mobilenet_exp.machine.memory import peak_memory
from mobilenet_exp.models.rounding import fit_steps
from mobilenet_exp.training import engine
from mobilenet_exp.training.engine import TrainMeter
from mobilenet_exp.training.record import Record
from mobilenet_exp.training.saving import Checkpointer
from mobilenet_exp.training.session import Session, check_finite


def train_epochs(session: Session, checkpointer: Checkpointer, record: Record) -> None:
    """Run the remaining epochs, going back to a checkpoint where `train.on_nonfinite` says so.

    Raises NonFiniteLossError for a run that diverged, Preempted for one that was asked to
    stop, both in all processes and after saving what can be saved.
    """
    checkpointer.before_first_update()
    while session.progress.epoch < session.config.train.epochs:
        try:
            train_epoch(session, checkpointer, record)
        except NonFiniteLossError as error:
            record.line(f"{error}; {checkpointer.roll_back(error)}")


def train_epoch(session: Session, checkpointer: Checkpointer, record: Record) -> None:
    """Run one epoch, or what is left of it: updates, evaluation, log, checkpoint."""
    for _ in make_updates(session, record.show):
        record.update()
        checkpointer.after_update()
    ended = time.perf_counter()
    checkpointer.after_updates()
    check_finite(session)
    started = time.perf_counter()
    # a GPU has now done what it was given
    session.meter.seconds += started - ended
    session.progress.seconds += started - ended
    ended_epoch = finish_epoch(session)
    session.team.together(lambda: record.epoch(*ended_epoch))
    checkpointer.after_epoch(is_best=ended_epoch.best is not None)
    session.pace.closing = time.perf_counter() - started


def make_updates(session: Session, show: Show) -> Iterator[None]:
    """Make the updates that are left of the epoch, and yield after each.

    `show(batches, label, total)` passes batches on and may draw a bar. Images,
    augmentation, mixing and dropout follow from the seed and the step alone.
    """
    progress, learner, sampler = session.progress, session.learner, session.loaders.sampler
    sampler.set_position(progress.epoch + 1, progress.update)
    session.meter.to(learner.device)
    engine.set_training_mode(learner)
    session.pace.begin_epoch()
    batches = show(_train_batches(session), lambda: _label(session), len(sampler))
    started = time.perf_counter()
    for parts in zip(*[iter(batches)] * learner.accumulate, strict=True):
        engine.update(learner, parts, session.step, session.meter)
        if learner.rounding:
            # all round alike, whichever process's ranges are saved
            session.team.average_buffers(learner.rounding.ranges)
            if session.team.size > 1:
                fit_steps(learner.rounding.ranges.state_dict())
        progress.update += 1
        if progress.update == sampler.num_updates:
            session.meter.grad_norm = engine.gradient_norm(learner)
        now = time.perf_counter()
        session.meter.seconds += now - started
        session.pace.add(now - started, sampler.batch_size)
        progress.seconds += now - started
        started = now
        yield


def _label(session: Session) -> str:
    """Return what the bar of an epoch is called."""
    epoch = f"epoch {session.progress.epoch + 1}/{session.config.train.epochs}"
    if not session.pace.updates:
        return epoch
    return f"{epoch}, {duration(session.pace.left(*session.to_come)[1])} left of the run"


def _train_batches(session: Session) -> Iterator[list[Tensor]]:
    """Pass on the training batches that are left of the epoch.

    A process that cannot load its images goes on with empty ones until all have heard of
    it: the others wait for its gradients.
    """
    sampler, loaded = session.loaders.sampler, iter(session.loaders.train)
    for _ in range(len(sampler)):
        asked = time.perf_counter()
        tensors = _stand_in(session) if session.problem else _next(session, loaded)
        waited = time.perf_counter() - asked
        session.pace.waiting += waited
        session.meter.waiting += waited
        yield tensors


def _next(session: Session, loaded: Iterator[tuple[Tensor, Tensor, Batch]]) -> list[Tensor]:
    """Return the next training batch; where there are other processes, one that stands in."""
    try:
        *tensors, batch = next(loaded)
    except (InputError, RunError) as error:
        if session.team.size == 1:
            raise
        session.problem = error
        return _stand_in(session)
    session.meter.note(batch.left_out, batch.num_unturned)
    return tensors


def _stand_in(session: Session) -> list[Tensor]:
    sampler, device = session.loaders.sampler, session.learner.device
    side = sampler.side_at(session.progress.epoch + 1)
    images = torch.zeros(sampler.part_size, 3, side, side, device=device)
    return [images, torch.zeros(sampler.part_size, dtype=torch.long)]


def _bn_batches(session: Session, count: int) -> Iterable[tuple[Tensor, ...]]:
    """Pass on the batches that statistics are estimated from; all processes fail together."""
    loaded = session.loaders.train.first(count)
    while loaded_batch := session.team.together(lambda: next(loaded, None)):
        *tensors, batch = loaded_batch
        session.meter.note(batch.left_out)
        yield tuple(tensors)


def _val_batches(session: Session) -> Iterator:
    """Pass the validation batches on; an image that cannot be read ends the run or is noted."""
    images, position = session.loaders.val_images, session.team.rank
    for tensors, labels, batch in session.loaders.val:
        for label, note in zip(batch.labels, batch.notes, strict=True):
            if label < 0:
                name = name_of(images, position)
                if session.config.data.on_bad_image == "fail":
                    problem = f"validation image {name} {note}; {BAD_IMAGE_ADVICE}"
                    raise RunError(f"{session.config.data.root}: {problem}")
                session.meter.note({name: note})
            position += session.team.size
        yield tensors, labels


class EndedEpoch(NamedTuple):
    """An epoch's metrics, and the answers to the validation images if it is the best so far."""

    metrics: dict[str, float]
    best: Predictions | None


def finish_epoch(session: Session) -> EndedEpoch:
    """Evaluate after an epoch's updates; return its metrics and, if it is the best, its answers.

    With an average of the weights, it is the average's accuracy that counts. Between two
    evaluations (`train.eval_every`) there are figures of the updates alone.
    """
    started = time.perf_counter()
    learner, progress = session.learner, session.progress
    found = _train_metrics(session)
    scores: dict[str, float] | None = None
    answers: Predictions | None = None
    if _is_evaluated(session):
        answers = _answers(session, learner.model, is_last=not learner.average)
        scores = metrics.scores(answers)
        found |= {f"val/{key}": value for key, value in scores.items()}
        if learner.average:
            answers = _answers(session, learner.average.model, is_last=True)
            scores = metrics.scores(answers)
            found |= {f"val_ema/{key}": value for key, value in scores.items()}
    found |= _odd_images(session)
    found |= {f"system/{key}": value for key, value in peak_memory(learner.device).items()}
    session.meter = TrainMeter()
    progress.seconds += time.perf_counter() - started
    is_best = progress.complete_epoch(scores)
    return EndedEpoch(found, answers if is_best else None)


def _is_evaluated(session: Session) -> bool:
    """Return whether the epoch that ends now is evaluated."""
    train, epoch = session.config.train, session.progress.epoch + 1
    return epoch % train.eval_every == 0 or epoch == train.epochs


def _odd_images(session: Session) -> dict[str, float]:
    """Remember what was odd about the epoch's images, and count it."""
    found: dict[str, float] = {}
    meters = session.team.gather((session.meter.left_out, session.meter.num_unturned))
    left_out = {name: reason for names, _ in meters for name, reason in names.items()}
    if session.config.data.on_bad_image == "skip":
        found["data/num_left_out"] = len(left_out)
        session.progress.left_out |= dict(sorted(left_out.items()))
    if num_unturned := sum(count for _, count in meters):
        found["data/num_unturned"] = num_unturned
    return found


def _train_metrics(session: Session) -> dict[str, float]:
    """Return the figures of the epoch's updates, over all processes."""
    meters = session.team.gather(session.meter.state_dict())
    num_images = sum(each["num_images"] for each in meters)
    if not num_images and not session.progress.rollbacks:
        raise known_to_all(NonFiniteLossError("no update of the epoch was finite"))
    found: dict[str, Any] = {"train/lr": session.last_lr}
    # there are none where the epoch's last update made the run go back to its start
    if num_images:
        found |= {
            "train/loss": sum(each["loss_sum"].item() for each in meters) / num_images,
            "train/top1": 100 * sum(each["correct"].item() for each in meters) / num_images,
            "speed/images_per_s": num_images / max(meters[0]["seconds"], 1e-9),
            "speed/waiting_percent": 100 * meters[0]["waiting"] / max(meters[0]["seconds"], 1e-9),
        }
    norm = session.meter.grad_norm
    if norm is not None and math.isfinite(norm):
        found["train/grad_norm"] = norm
    if session.learner.skips_nonfinite:
        found["train/num_skipped"] = meters[0]["num_skipped"]
    return found


def _answers(session: Session, model: nn.Module, *, is_last: bool) -> Predictions:
    """Score one network, the first process's, on every image once, shared among all.

    `is_last`: no training images are needed any more before the next epoch's.
    """
    learner, team, loaders = session.learner, session.team, session.loaders
    network = learner.rounding.around(model) if learner.rounding else model
    num_batches = session.config.train.precise_bn_batches
    if num_batches and not learner.frozen_bn:
        loaders.sampler.set_position(session.progress.epoch + 1)
        torch.manual_seed(session.config.train.seed)
        batches, precision = _bn_batches(session, num_batches), session.eval_precision
        engine.reestimate_bn(
            network, batches, learner.device, num_batches=num_batches, precision=precision
        )
        team.average_buffers(model)
    team.share_buffers(network)
    if is_last and session.progress.epoch + 1 < session.config.train.epochs:
        # the next epoch's first images are read while this one is scored
        loaders.sampler.set_position(session.progress.epoch + 2)
        loaders.train.begin()
    answers = team.together(
        lambda: predict(
            network,
            _val_batches(session),
            learner.device,
            precision=session.eval_precision,
            first=team.rank,
            step=team.size,
        )
    )
    merged = metrics.merge(team.gather(answers))
    if not len(merged.index):
        raise known_to_all(RunError("no validation image can be read"))
    return merged
