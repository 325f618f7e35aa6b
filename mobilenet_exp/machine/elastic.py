"""Starts the processes of a job on this machine, by torch's elastic agent. Knows no loop."""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from typing import Any, TypeVar

import torch

from mobilenet_exp.core.errors import InputError, LostPeerError, RunError, in_plain_words
from mobilenet_exp.core.streams import escape_what_cannot_be_shown
from mobilenet_exp.core.text import plural
from mobilenet_exp.machine.launched import place
from mobilenet_exp.machine.preemption import (
    ASKING,
    END_OF_TIME,
    HANG_UP,
    Preempted,
    ignores_hang_up,
)

T = TypeVar("T")
# seconds that processes get to save before they are killed
SAVE_WITHIN = 120
# what the agent tells each process about its place
PLACE_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_")
# new processes are forked from a server that has imported everything once; spawned where
# the system has no such thing
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
# signals that the agent or this module handles while processes run
AGENT_SIGNALS = (*ASKING, signal.SIGQUIT)


def launch(job: Callable[..., T], args: tuple, *, processes: int, max_restarts: int) -> T:
    """Run `job(*args)` in new processes on this machine and return the first one's result.

    They are started by torch's elastic agent, and all restarted, up to `max_restarts`
    times, if one dies. Raises what the job raises for a person as it is; RunError if
    processes died too often; Preempted if this process was told to stop, once they have
    stopped.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"train-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
        monitor_interval=0.2,
        start_method=START_METHOD,
    )
    if START_METHOD == "forkserver":
        _start_fork_server(job.__module__)
    if hasattr(config, "shutdown_timeout"):
        config.shutdown_timeout = SAVE_WITHIN
    if ignores_hang_up():
        # the agent would take the signal all the same, and end processes that ignore it
        config.signals_to_handle = "SIGTERM,SIGINT,SIGQUIT"
    kept = {number: signal.getsignal(number) for number in AGENT_SIGNALS}
    asked = _pass_on_early_signals()
    try:
        answers = elastic_launch(config, _worker)(
            job, args, processes, dict(os.environ), ignores_hang_up()
        )
    except SignalException as stop:
        if multiprocessing.active_children():
            # told a second time, while the processes were saving
            _leave_at_once()
        number = asked.get("number", stop.sigval)
        raise Preempted(number, "", asked.get(number)) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        attempts = plural(max_restarts + 1, "attempt")
        words = f"process {rank} of {processes} exited with {failure.exitcode}"
        raise RunError(f"{words} after {attempts}; see its output above") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in kept.items():
                signal.signal(number, handler)
    result, refusal = pickle.loads(answers[0])
    if refusal is not None:
        raise refusal
    return result


def _start_fork_server(module: str) -> None:
    """Start the server that new processes are forked from, with `module` imported.

    It is a bare interpreter, which finds this package by PYTHONPATH only.
    """
    multiprocessing.set_forkserver_preload(["mobilenet_exp.machine.outliving", module])
    kept = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(each for each in sys.path if each)
    try:
        forkserver.ensure_running()
    finally:
        if kept is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = kept


def _worker(
    job: Callable,
    args: tuple,
    processes: int,
    environment: dict[str, str],
    ignores_hang_up: bool,
) -> bytes:
    """Run the job; what a person should read is a result, not a reason to restart."""
    # the fork server has the environment in which it was started, perhaps for another job
    # but this process's place, which the agent has set
    os.environ.update(
        {key: value for key, value in environment.items() if not key.startswith(PLACE_VARIABLES)}
    )
    escape_what_cannot_be_shown()
    # the fork server ignores these
    for number in ASKING:
        if number == HANG_UP and ignores_hang_up:
            continue
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )
    # as many threads in all as one process would take
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    result, refusal = None, None
    try:
        result = job(*args)
    except LostPeerError:
        # the process that was lost is the reason to start again, and has said why
        sys.exit(1)
    except (InputError, RunError) as error:
        refusal = _said_if_own(error)
    except Preempted as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        plain = in_plain_words(error)
        if not isinstance(plain, RunError):
            traceback.print_exc()
            raise
        refusal = _said_if_own(plain)
    return pickle.dumps((result, refusal))


def _said_if_own(error: InputError | RunError) -> InputError | RunError:
    """Return what all processes know, which the first one reports; say what they do not."""
    if error.is_own and place().size > 1:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    return error


def _pass_on_early_signals() -> dict[Any, Any]:
    """Turn the signals that announce an end into SIGTERM, which the elastic agent knows.

    Returns a dict that holds what handled each before, and, once one came, its `number`.
    """
    asked: dict[Any, Any] = {}

    def pass_on(number: int, _: object) -> None:
        asked["number"] = number
        os.kill(os.getpid(), signal.SIGTERM)

    if threading.current_thread() is threading.main_thread():
        for number in END_OF_TIME:
            asked[number] = signal.signal(number, pass_on)
    return asked


def _leave_at_once() -> None:
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(128 + signal.SIGINT)
