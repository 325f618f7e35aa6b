"""Signals that ask a run to stop: it finishes its update, saves, and exits.

Ctrl-C and SIGTERM ask; so do SIGUSR1 and SIGUSR2, by which a scheduler announces the end of
a job's time, and SIGHUP, when the terminal is closed (but not under nohup). A second Ctrl-C
exits at once.
"""

import _thread
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# sysexits' EX_TEMPFAIL: try again. The code on which a scheduler requeues.
PREEMPTED = 75
# of these Slurm does not requeue by itself; Windows has none
TIME_LIMIT_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
HANG_UP = getattr(signal, "SIGHUP", None)
if HANG_UP and signal.getsignal(HANG_UP) == signal.SIG_IGN:
    # this process was started to outlive its terminal, as nohup does
    HANG_UP = None
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, *TIME_LIMIT_SIGNALS, *([HANG_UP] if HANG_UP else []))


class Preempted(BaseException):
    """A run was asked to stop and has saved; the same command resumes it.

    Not an Exception, so that a sweep ends with it, too.
    """

    exit_code = PREEMPTED

    def __init__(self, number: int, saved: str = "", earlier: Any = None) -> None:
        self.number, self.saved, self.earlier = number, saved, earlier
        super().__init__(number, saved)

    @property
    def line(self) -> str:
        """Return what a person should read."""
        where = f" {self.saved}" if self.saved else ""
        name = signal.Signals(self.number).name
        return f"stopped by {name}{where}; run the same command again to resume"


class _Ended(SystemExit):
    """Raised by SIGTERM and SIGHUP where no run listens."""


# seconds after which a signal is sent again whose exception Python has dropped
AGAIN = 0.05
RAISED_BY = {_Ended: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}


class _Signals:
    """Signals that raise something, and what Python has dropped of it."""

    def __init__(self) -> None:
        self.raised = self.dropped = 0
        self.others: Callable[[Any], Any] = sys.unraisablehook

    def end(self, number: int, _: object) -> None:
        self.raised += 1
        raise KeyboardInterrupt if number == signal.SIGINT else _Ended(128 + number)

    def hear_of_dropped(self, unraisable: Any) -> None:
        number = RAISED_BY.get(unraisable.exc_type)
        if number is None:
            self.others(unraisable)
            return
        self.dropped += 1
        try:
            self._send_later(number)
        except (_Ended, KeyboardInterrupt):
            # another one came meanwhile, and here it would be dropped, too
            self.dropped += 1
            self._send_later(number)

    def _send_later(self, number: signal.Signals) -> None:
        timer = threading.Timer(AGAIN, self._send_again, (number, self.raised - self.dropped))
        timer.daemon = True
        timer.start()

    def _send_again(self, number: signal.Signals, come_through: int) -> None:
        # what has come through since then ends the process
        if self.raised - self.dropped == come_through:
            _send(number)


_signals = _Signals()


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this process as an error does, `finally` and all.

    The exit code is 128 and the signal's number, 143 for SIGTERM.

    Python drops what a signal raises while it calls back for a weak reference that has died, of
    which torch.compile has many. Then the signal, SIGTERM or Ctrl-C, is sent again a moment
    later, unless another one has come through.
    """
    signal.signal(signal.SIGTERM, _signals.end)
    if HANG_UP:
        signal.signal(HANG_UP, _signals.end)
    # a shell's background job ignores it
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _signals.end)
    if sys.unraisablehook != _signals.hear_of_dropped:
        _signals.others, sys.unraisablehook = sys.unraisablehook, _signals.hear_of_dropped


def _send(number: signal.Signals) -> None:
    """Send a signal to the main thread, and wake it where the system can."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, number)
    else:
        _thread.interrupt_main(number)


@dataclass
class Stop:
    """Whether this process was asked to stop, and by which signal."""

    number: int | None = None
    # what the signals did before
    earlier: dict[int, Any] = field(default_factory=dict)

    def _ask(self, number: int, _: object) -> None:
        # under a launcher, it is the launcher that receives a second Ctrl-C
        if number == signal.SIGINT and self.number is not None and "RANK" not in os.environ:
            os._exit(128 + signal.SIGINT)
        self.number = number

    def preempted(self, saved: str) -> Preempted:
        """Return what a run raises once it has saved; `saved` says where, as `after epoch 2`."""
        number = self.number or signal.SIGTERM
        return Preempted(number, saved, self.earlier.get(number))


@contextmanager
def listening() -> Iterator[Stop]:
    """Note signals that ask to stop, instead of what they did before.

    Python receives signals in its main thread alone; elsewhere nothing changes.
    """
    stop = Stop()
    is_main = threading.current_thread() is threading.main_thread()
    for each in STOP_SIGNALS if is_main else ():
        stop.earlier[each] = signal.signal(each, stop._ask)
    try:
        yield stop
    finally:
        for number, handler in stop.earlier.items():
            signal.signal(number, handler)


def requeue(stop: Preempted) -> str | None:
    """Have the scheduler run this job again; return a line about it, None without one.

    A handler that was there before ours, such as submitit's, does it its own way.
    Otherwise `scontrol requeue` is run where Slurm announced the end of the job's time; after a
    SIGTERM Slurm requeues by itself, or the job was cancelled.
    """
    if stop.number in TIME_LIMIT_SIGNALS and callable(stop.earlier):
        stop.earlier(stop.number, None)
        return None
    job = os.environ.get("SLURM_JOB_ID")
    if stop.number not in TIME_LIMIT_SIGNALS or job is None:
        return None
    if shutil.which("scontrol") is None:
        return f"Slurm job {job} could not be requeued: scontrol is not installed here"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode:
        return f"Slurm job {job} could not be requeued: {done.stderr.strip()}"
    return f"Slurm job {job} was requeued"
