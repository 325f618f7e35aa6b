"""A session's checkpoints: written, resumed, gone back to. Prints and logs nothing."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mobilenet_exp.config.convert import differences, to_config, to_dict
from mobilenet_exp.core.errors import InputError, NonFiniteLossError
from mobilenet_exp.models.dialect import dialect_of
from mobilenet_exp.training import engine
from mobilenet_exp.training.engine import Tally
from mobilenet_exp.training.loop import check_finite, plain
from mobilenet_exp.training.session import Progress, Session
from mobilenet_exp.weights.checkpoint import load_latest, restore_model, save_checkpoint

# times that one epoch may go back to a checkpoint
MAX_ROLLBACKS = 3


def save(session: Session, folder: Path, *, is_best: bool = False) -> None:
    """Write `last.pt`, and `best.pt` where this epoch is the best, into `folder`.

    Every process calls this, the first one writes. The checkpoint before becomes
    `previous.pt`. Raises NonFiniteLossError instead of saving what is not finite, and
    RunError if the disk is full.
    """
    team = session.team
    tallies = team.gather(plain(session.tally))
    _check_savable(session)
    team.together(lambda: _write(session, tallies, folder, is_best))


def _write(session: Session, tallies: list, folder: Path, is_best: bool) -> None:
    if not session.team.is_first:
        return
    learner = session.learner
    state: dict[str, Any] = {
        "config": to_dict(session.config),
        "images": session.loaders.identity(),
        "classes": session.loaders.classes,
        "num_classes": session.num_classes,
        "epoch": session.progress.epoch,
        "progress": asdict(session.progress),
        "tallies": tallies,
        "dialect": asdict(dialect_of(session.model)),
        "model": session.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
    }
    if learner.average:
        state["model_ema"] = learner.average.state_dict()
    if is_best:
        save_checkpoint(folder / "best.pt", state)
    save_checkpoint(folder / "last.pt", state, previous=folder / "previous.pt")


def _check_savable(session: Session) -> None:
    check_finite(session)
    (is_bad,) = session.team.any(not engine.is_finite(session.model))
    if is_bad:
        raise NonFiniteLossError(f"the weights are not finite after step {session.step - 1}")


def is_begun(folder: Path) -> bool:
    """Return whether `folder` has a checkpoint to resume from."""
    return any((folder / name).exists() for name in ("last.pt", "previous.pt"))


def resume(session: Session, folder: Path) -> list[str]:
    """Take up the last checkpoint of `folder` if there is one; return lines about damage.

    Raises InputError if none can be read, or if it is of another configuration or of
    other images.
    """
    state, lines = session.team.share(lambda: load_latest(folder))
    if state is None:
        return lines
    path = folder / "last.pt"
    if found := differences(session.config, to_config(state["config"])):
        allowed = f"{path} is of another configuration: {', '.join(found[:3])}"
        raise InputError("run.root", session.config.run.root, allowed)
    check_images(session, state["images"], path)
    _restore(session, state, path)
    session.progress = Progress(**state["progress"])
    session.tally = _own_tally(session, state["tallies"])
    return lines


def roll_back(session: Session, folder: Path) -> str:
    """Take the last checkpoint's weights, and go on after the update that failed.

    The images since that checkpoint are passed over: the same ones would fail again.
    Returns a line about it. Raises NonFiniteLossError after MAX_ROLLBACKS in one epoch.
    """
    progress = session.progress
    if progress.rollbacks == MAX_ROLLBACKS:
        raise NonFiniteLossError(f"went back {MAX_ROLLBACKS} times in epoch {progress.epoch + 1}")
    state, _ = session.team.share(lambda: load_latest(folder))
    _restore(session, state, folder / "last.pt")
    then = Progress(**state["progress"])
    session.tally = _own_tally(session, state["tallies"])
    if then.epoch != progress.epoch:
        session.tally = Tally()
    progress.rollbacks += 1
    return (
        f"went back to the weights of epoch {then.epoch + 1}, update {then.update}; "
        f"goes on after update {progress.update} of epoch {progress.epoch + 1}"
    )


def _restore(session: Session, state: dict[str, Any], path: Path) -> None:
    learner = session.learner
    restore_model(session.model, state, path)
    learner.optimizer.load_state_dict(state["optimizer"])
    if learner.average:
        restore_model(learner.average.model, state | {"model": state["model_ema"]}, path)


def _own_tally(session: Session, tallies: list[dict[str, Any]]) -> Tally:
    """Return this process's sums; of another number of processes the first takes all."""
    team = session.team
    if len(tallies) == team.size:
        return Tally(**tallies[team.rank])
    # every process counts the same updates and seconds
    alike = {key: tallies[0][key] for key in ("num_skipped", "skipped_in_a_row", "seconds")}
    if not team.is_first:
        return Tally(**alike)
    return Tally(**{key: sum(each[key] for each in tallies) for key in tallies[0]} | alike)


def check_images(session: Session, images: dict[str, Any], path: Path) -> None:
    """Refuse to go on with what `path` holds if it is of other images than the session's."""
    if images != session.loaders.identity():
        allowed = f"holds other images than {path} is of; another run.root begins anew"
        raise InputError("data.root", session.config.data.root, allowed)
