"""Starts the ranks of a job on this machine, by the agent that torchrun has."""

import contextlib
import ctypes
import itertools
import logging
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mobilenet_exp.core.errors import InputError, LostPeerError, RunError, in_plain_words
from mobilenet_exp.core.streams import prepare_streams
from mobilenet_exp.core.text import plural
from mobilenet_exp.machine.preemption import (
    HANG_UP,
    PREEMPTED,
    STOP_SIGNALS,
    TIME_LIMIT_SIGNALS,
    Preempted,
    end_on_signals,
)

T = TypeVar("T")
# of Linux's <sys/prctl.h>
PR_SET_PDEATHSIG = 1
# seconds that ranks get to save before they are killed
SAVE_WITHIN = 120
# what a rank runs: it finds this package where its parent did
RANK = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from mobilenet_exp.machine.launch import run_rank; sys.exit(run_rank(sys.argv[1]))"
)


def launch(job: Callable[..., T], args: tuple, *, processes: int, max_restarts: int) -> T:
    """Run `job(*args)` in new processes on this machine and return the first one's result.

    All are started again, up to `max_restarts` times, if one dies. Raises what the job raises
    for a person; RunError if processes died too often; Preempted if this process was
    asked to stop, once they have stopped.
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
        # they are restarted below, only where one died, not for what a person must mend
        max_restarts=0,
        monitor_interval=0.2,
    )
    if hasattr(config, "shutdown_timeout"):
        config.shutdown_timeout = SAVE_WITHIN
    if HANG_UP is None:
        # the agent would take the signal all the same, and end processes that ignore it
        config.signals_to_handle = "SIGTERM,SIGINT,SIGQUIT"
    # it tells of each signal and each exit code
    for each in ("agent.server.api", "multiprocessing.api"):
        logging.getLogger(f"torch.distributed.elastic.{each}").setLevel(logging.CRITICAL)
    asked: dict[str, int] = {}

    def pass_on(number: int, _: object) -> None:
        # the agent knows SIGTERM, and none of those that announce the end of a job's time
        asked["number"] = number
        os.kill(os.getpid(), signal.SIGTERM)

    kept = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGQUIT)}
    is_main_thread = threading.current_thread() is threading.main_thread()
    for number in TIME_LIMIT_SIGNALS if is_main_thread else ():
        signal.signal(number, pass_on)
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        (folder / "task").write_bytes(pickle.dumps((job, args)))
        command = ("-c", RANK, name, *(each or os.getcwd() for each in sys.path))
        try:
            for left in itertools.count(max_restarts, -1):
                try:
                    elastic_launch(config, sys.executable)(*command)
                    break
                except ChildFailedError as error:
                    _raise_what_was_told(folder)
                    rank, failure = error.get_first_failure()
                    if failure.exitcode == PREEMPTED:
                        raise Preempted(signal.SIGTERM) from None
                    if not left:
                        failed = f"process {rank} of {processes} exited with {failure.exitcode}"
                        attempts = plural(max_restarts + 1, "attempt")
                        problem = f"{failed} after {attempts}; see its output above"
                        raise RunError(problem) from error
            return pickle.loads((folder / "result").read_bytes())
        except SignalException as stop:
            _kill_those_left(folder)
            _raise_what_was_told(folder)
            number = asked.get("number", stop.sigval)
            raise Preempted(number, "", kept.get(number)) from None
        finally:
            for number, handler in kept.items() if is_main_thread else ():
                signal.signal(number, handler)


def _raise_what_was_told(folder: Path) -> None:
    """Raise what a rank left for a person to read, the first one where there are several."""
    errors = sorted(folder.glob("error-*"), key=lambda path: path.stat().st_mtime)
    if errors:
        raise pickle.loads(errors[0].read_bytes()) from None


def _kill_those_left(folder: Path) -> None:
    """End this process at once if ranks are left: it was asked a second time, while they saved."""
    left = []
    for path in folder.glob("pid-*"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
            left.append(int(path.read_text()))
    for rank in left:
        # with its loading processes
        os.killpg(rank, signal.SIGKILL)
    if left:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(128 + signal.SIGINT)


def run_rank(name: str) -> int:
    """Run the job as one of the processes that `launch` starts; return the exit code.

    What a person should read is left in a file for the process that launched it.
    """
    import torch

    folder, rank = Path(name), os.environ["RANK"]
    if sys.platform == "linux":
        # saves and ends, too, if the process that launched it is killed
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    job, args = pickle.loads((folder / "task").read_bytes())
    prepare_streams()
    end_on_signals()
    # as many threads in all as one process would take
    threads = torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"])
    torch.set_num_threads(max(1, threads))
    try:
        result = job(*args)
    except Preempted as stop:
        return stop.exit_code
    except Exception as error:
        plain = in_plain_words(error)
        # the process that was lost is the reason to start again, and has said why
        if isinstance(plain, (InputError, RunError)) and not isinstance(plain, LostPeerError):
            (folder / f"error-{rank}").write_bytes(pickle.dumps(plain))
        elif not isinstance(plain, LostPeerError):
            traceback.print_exc()
        return 1
    if rank == "0":
        (folder / "result").write_bytes(pickle.dumps(result))
    return 0
