"""How a program ends: its exit code, and one line for a person or a traceback for a defect."""

import time
import traceback
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mobilenet_exp.config.explain import explain
from mobilenet_exp.core.errors import InputError, LostPeerError, RunError, in_plain_words
from mobilenet_exp.core.streams import say
from mobilenet_exp.machine.launch_env import is_main_rank
from mobilenet_exp.machine.preemption import Preempted, requeue

PACKAGE = Path(__file__).resolve().parents[1]
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
# done, but some images were left out or are missing
INCOMPLETE = 3
BAD_INPUT_ERRORS = (InputError, HydraException, OmegaConfBaseException, YAMLError)
# seconds after which a rank reports what the main one may report, too: by then the launcher has
# ended it
LATER = 2


def report_error(error: BaseException, overrides: tuple[str, ...], schema: type) -> str:
    """Print an error, with its traceback if no person was meant to read it; return its line.

    Of ranks that fail alike the main one speaks; a rank that has merely lost another lets that
    one speak first.
    """
    if not is_main_rank() or isinstance(error, LostPeerError):
        time.sleep(LATER)
    error = in_plain_words(error)
    if isinstance(error, RunError):
        say(f"error: {error}")
        return str(error)
    if not isinstance(error, BAD_INPUT_ERRORS):
        traceback.print_exception(error)
        return f"{type(error).__name__}: {error}".splitlines()[0]
    text = explain(error, list(overrides), schema)
    say(f"error: {text}")
    return text


def print_error(text: str) -> None:
    """Print a line about a command, by the main rank for all."""
    if is_main_rank():
        say(f"error: {text}")


def report_stop(stop: Preempted) -> None:
    """Say that a run was stopped and saved, and have a scheduler run it again."""
    # one process speaks, and asks, for all that share the job
    if is_main_rank():
        say(stop.line)
        if line := requeue(stop):
            say(line)


def is_bad_input(error: Exception) -> bool:
    # Hydra raises a plain ValueError for a group's option that is no word
    return isinstance(error, BAD_INPUT_ERRORS) or "Config group" in str(error)


def is_ours(error: BaseException) -> bool:
    """Return whether our own code raised an error, and so has a defect."""
    innermost = traceback.extract_tb(error.__traceback__)[-1:]
    return any(Path(frame.filename).is_relative_to(PACKAGE) for frame in innermost)
