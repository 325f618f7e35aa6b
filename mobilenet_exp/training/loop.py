"""The epochs of a session: its updates one by one, its evaluation. Prints and logs nothing."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any, TypeVar

import torch

from mobilenet_exp.core.errors import NonFiniteLossError, RunError
from mobilenet_exp.evaluation import metrics
from mobilenet_exp.machine.distributed import Team
from mobilenet_exp.training import engine
from mobilenet_exp.training.engine import CHECK_EVERY, Tally
from mobilenet_exp.training.session import Session

T = TypeVar("T")
Show = Callable[[Iterable, str, int], Iterable]


def train_epoch(session: Session, show: Show) -> Iterator[None]:
    """Make the updates that the epoch has left, and yield after each.

    `show(batches, label, total)` passes batches on and may draw a bar. Images,
    augmentation, mixing and dropout follow from the seed and the step alone. Raises
    NonFiniteLossError in all processes, at the update itself on a CPU, elsewhere within
    CHECK_EVERY of it.
    """
    progress, order, learner = session.progress, session.loaders.order, session.learner
    order.set_position(progress.epoch + 1, progress.update)
    batches = show(_loaded(session), f"epoch {progress.epoch + 1}", len(order))
    # on a GPU a look waits for it
    check_every = 1 if learner.device.type == "cpu" else CHECK_EVERY
    started = time.perf_counter()
    for _ in engine.make_updates(learner, batches, session.tally, first_step=session.step):
        progress.update += 1
        now = time.perf_counter()
        session.tally.seconds += now - started
        progress.seconds += now - started
        started = now
        if progress.update % check_every == 0 or progress.update == order.num_updates:
            check_finite(session)
        yield


def _loaded(session: Session) -> Iterator:
    """Pass the training batches on; what cannot be loaded in one process ends all of them."""
    batches = iter(session.loaders.train)
    while (batch := _together(session.team, lambda: next(batches, None))) is not None:
        yield batch


def _together(team: Team, action: Callable[[], T]) -> T:
    """Do what loads images in all processes; where that fails in one, all say why."""

    def tried() -> T:
        try:
            return action()
        except RunError as error:
            # a loading process sends its traceback along; the last line is what it said
            said = str(error).strip().splitlines()[-1]
            raise type(error)(said.removeprefix("mobilenet_exp.core.errors.RunError: ")) from error

    return team.together(tried)


def check_finite(session: Session) -> None:
    """Raise NonFiniteLossError in all processes if a loss so far was not finite in one."""
    (is_bad,) = session.team.any(not session.tally.loss_sum.isfinite().item())
    if is_bad:
        where = f"epoch {session.progress.epoch + 1}, step {session.step - 1}"
        raise NonFiniteLossError(f"the loss is not finite at {where}, lr {session.last_lr:.3g}")


def finish_epoch(session: Session) -> tuple[dict[str, float], bool]:
    """Evaluate after an epoch's updates; return its metrics and whether it is the best so far.

    With an average of the weights, it is the average's accuracy that counts.
    """
    started = time.perf_counter()
    learner, progress = session.learner, session.progress
    learned = _learned(session)
    found = {f"train/{key}": value for key, value in learned.items()}
    scores = _score(session, learner.model)
    found |= {f"val/{key}": value for key, value in scores.items()}
    if learner.average:
        scores = _score(session, learner.average.model)
        found |= {f"val_ema/{key}": value for key, value in scores.items()}
    progress.epoch, progress.update = progress.epoch + 1, 0
    progress.seconds += time.perf_counter() - started
    progress.last_top1 = scores["top1"]
    is_best = progress.best_epoch == 0 or scores["top1"] > progress.top1
    if is_best:
        progress.best_epoch = progress.epoch
        progress.top1, progress.top5 = scores["top1"], scores["top5"]
    progress.rollbacks = 0
    session.tally = Tally()
    return found, is_best


def _learned(session: Session) -> dict[str, float]:
    """Return the figures of the epoch's updates, over all processes."""
    tallies = session.team.gather(plain(session.tally))
    num_images = sum(each["num_images"] for each in tallies)
    if not num_images and not session.progress.rollbacks:
        raise NonFiniteLossError("no update of the epoch was finite")
    found = {"lr": session.last_lr}
    # none where the epoch's last update made the run go back to its start
    if num_images:
        found |= {
            "loss": sum(each["loss_sum"].item() for each in tallies) / num_images,
            "top1": 100 * sum(each["correct"].item() for each in tallies) / num_images,
            "images_per_s": num_images / max(tallies[0]["seconds"], 1e-9),
        }
    if session.learner.skips_nonfinite:
        found["num_skipped"] = tallies[0]["num_skipped"]
    return found


def _score(session: Session, model: torch.nn.Module) -> dict[str, float]:
    """Score one network, the first process's, on every image once, shared among all."""
    learner, team, loaders = session.learner, session.team, session.loaders
    num_batches = session.config.train.precise_bn_batches
    if num_batches and not learner.frozen_bn:
        loaders.order.set_position(session.progress.epoch + 1)
        torch.manual_seed(session.config.train.seed)
        batches = _loaded(session)
        engine.reestimate_bn(model, batches, learner.device, num_batches=num_batches)
        team.average_buffers(model)
    team.share_buffers(model)
    answers = _together(
        team,
        lambda: engine.predict(model, loaders.val, learner.device, first=team.rank, step=team.size),
    )
    return metrics.scores(metrics.merge(team.gather(answers)))


def plain(tally: Tally) -> dict[str, Any]:
    """Return the sums on the CPU, for other processes and files."""
    return asdict(tally) | {"loss_sum": tally.loss_sum.cpu(), "correct": tally.correct.cpu()}
