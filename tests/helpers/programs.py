"""The programs as a person runs them, started from one warm process that forks.

Importing torch takes seconds, and many tests start a program. `start` and `run` therefore
ask a server, one for each pytest process, which has imported everything and forks: the
child sets up folder, environment, output and arguments, and runs the script as `__main__`.
What a test sees is a process of its own with a pid, signals and an exit code.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

HELPERS = Path(__file__).resolve().parent
ROOT = HELPERS.parents[1]
SCRIPTS = ("train.py", "eval.py", "bench.py")


class Warm:
    """A forked program; the part of subprocess.Popen that the tests use."""

    def __init__(self, words: list[str], folder: Path, env: dict[str, str], **options) -> None:
        reading: dict[str, IO | None] = {"stdout": None, "stderr": None}
        handles = []
        for name in reading:
            where = options.get(name)
            if where == subprocess.PIPE:
                ours, theirs = os.pipe()
                reading[name] = open(ours, errors="replace")  # noqa: SIM115 - kept open
            elif where == subprocess.STDOUT:
                theirs = os.dup(handles[0])
            else:
                theirs = os.open(os.devnull, os.O_WRONLY)
            handles.append(theirs)
        self.stdout, self.stderr = reading["stdout"], reading["stderr"]
        self.returncode: int | None = None
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.connect(_server())
        new_session = options.get("start_new_session", False)
        order = {"words": words, "folder": str(folder), "env": env, "session": new_session}
        socket.send_fds(self._line, [json.dumps(order).encode()], handles)
        for handle in handles:
            os.close(handle)
        self.pid = int(self._line.recv(32))

    def poll(self) -> int | None:
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        if self._wait(timeout) is None:
            raise subprocess.TimeoutExpired("a program", timeout)
        return self.returncode

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._line], [], [], timeout)[0]:
            self.returncode = int(self._line.recv(32) or -signal.SIGKILL)
            self._line.close()
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str | None, str | None]:
        texts: dict[str, str] = {}

        def read(name: str, stream: IO) -> None:
            texts[name] = stream.read()

        streams = {"stdout": self.stdout, "stderr": self.stderr}
        threads = [
            threading.Thread(target=read, args=item, daemon=True)
            for item in streams.items()
            if item[1] is not None
        ]
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0, deadline - time.monotonic()))
        self.wait(max(0, deadline - time.monotonic()))
        return texts.get("stdout"), texts.get("stderr")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(folder: Path, script: str, *words: str, env: dict | None = None, **options) -> Warm:
    """Start `train.py`, `eval.py` or `bench.py` in `folder`, with one thread a process."""
    return Warm([str(ROOT / script), *words], folder, environment(**env or {}), **options)


def environment(**env: str) -> dict[str, str]:
    """Return the environment of a program: one thread, and the tests' modules to import."""
    # what a program that ran in this process has set, as W&B's service, is not another's
    set_here = ("WANDB_SERVICE", "GOMP_SPINCOUNT")
    own = {name: value for name, value in os.environ.items() if name not in set_here}
    return own | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HELPERS)} | env


def run(folder: Path, script: str, *words: str, **env: str) -> subprocess.CompletedProcess:
    """Run a program to its end."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = start(folder, script, *words, env=env, **pipes)
    out, errors = process.communicate()
    return subprocess.CompletedProcess([script, *words], process.returncode, out, errors)


_started: list[str] = []


def _server() -> str:
    """Return the server's address; start it the first time."""
    if not _started:
        path = tempfile.mkdtemp() + "/warm"
        command = [sys.executable, __file__, path]
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        server = subprocess.Popen(command, env=env, start_new_session=True)
        atexit.register(server.kill)
        deadline = time.monotonic() + 300
        while not Path(path).exists():
            assert server.poll() is None, "the warm process has died"
            assert time.monotonic() < deadline, "the warm process does not start"
            time.sleep(0.05)
        _started.append(path)
    return _started[0]


def _serve(path: str) -> None:
    """Fork a program for each order, and tell its exit code when it has ended."""
    listening, parent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), os.getppid()
    listening.bind(path + ".new")
    listening.listen(64)
    # an end of a child wakes the loop
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    os.rename(path + ".new", path)
    lines: dict[int, socket.socket] = {}
    while os.getppid() == parent:
        ready, _, _ = select.select([listening, woken], [], [], 5)
        if woken in ready:
            os.read(woken, 4096)
        while lines:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            line = lines.pop(pid)
            # a test that failed may have left its program
            with contextlib.suppress(OSError):
                line.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            line.close()
        if listening in ready:
            line, _ = listening.accept()
            order, handles, _, _ = socket.recv_fds(line, 1 << 20, 2)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for each in (line, listening, *lines.values()):
                    each.close()
                os.close(woken)
                os.close(wake)
                _become(json.loads(order), handles)
                return
            lines[pid] = line
            line.sendall(str(pid).encode())
            for handle in handles:
                os.close(handle)


def _become(order: dict, handles: list[int]) -> None:
    """Be the program that was asked for; returns when it has ended, or raises SystemExit."""
    if order["session"]:
        os.setsid()
    for handle, number in zip(handles, (1, 2), strict=True):
        os.dup2(handle, number)
        os.close(handle)
    encoding = order["env"].get("PYTHONIOENCODING", "utf-8")
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115 - kept open
    sys.stderr = open(2, "w", 1, encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["env"])
    # W&B's, which each process removes as it ends
    MEDIA_TMP.name = tempfile.mkdtemp("wandb-media")
    sys.argv = order["words"]
    sys.path[:1] = [str(ROOT), *filter(None, order["env"].get("PYTHONPATH", "").split(os.pathsep))]
    runpy.run_path(order["words"][0], run_name="__main__")


if __name__ == "__main__":
    sys.path.insert(1, str(ROOT))
    # the tests may run under nohup, which these programs do not
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # what programs import only when they need it, too
    import matplotlib.figure  # noqa: F401
    import sklearn.datasets
    import sklearn.model_selection  # noqa: F401
    from wandb.sdk.data_types._private import MEDIA_TMP

    import mobilenet_exp.deploy.job
    import mobilenet_exp.evaluation.job
    import mobilenet_exp.training.train  # noqa: F401

    # else the first collection in a child copies all of this memory: a second for each program
    gc.collect()
    gc.freeze()
    _serve(sys.argv[1])
