"""Asked to stop, out of disk, without its dashboard: each has one known outcome."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys

import pytest
from hard_run import WORDS, children, folder_of, kill, rows, start, state, wait_for
from programs import ROOT, environment
from states import crash_before_saving

from mobilenet_exp import train
from mobilenet_exp.config.identity import run_name
from mobilenet_exp.core.errors import InputError, RunError
from mobilenet_exp.machine.lock import locked
from mobilenet_exp.weights.checkpoint import load_checkpoint

BUSY = (*WORDS, "train.epochs=400", "run.workers=2")


def _saved(tmp_path):
    return list(tmp_path.glob("runs/*/checkpoints/last.pt"))


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_asked_to_stop_a_run_saves_and_asks_to_be_run_again(tmp_path, sent):
    """To the whole group, as a terminal and Slurm do: loading processes hear it, too."""
    words = (*BUSY, "run.wandb=offline")
    process = start(
        tmp_path, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    wait_for(lambda: _saved(tmp_path), process)
    os.killpg(process.pid, sent)
    # W&B's service may be lost with the signal, and is waited for a minute
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 75, errors
    name = signal.Signals(sent).name
    assert errors.startswith(f"stopped by {name} after epoch ")
    assert errors.count("\n") == 1, errors
    folder = folder_of(tmp_path)
    assert not (folder / "error.txt").exists()
    progress = state(folder)["progress"]
    update = f", update {progress['update']}" if progress["update"] else ""
    assert f"after epoch {progress['epoch']}{update}; run the same command again" in errors
    assert len(rows(folder)) == progress["epoch"]
    (stored,) = tmp_path.glob("runs/wandb/offline-run-*")
    # by hand it reads as killed, by a scheduler as preempted
    records = _inspect(stored)
    assert any("preempting" in record for record in records) == (sent != signal.SIGINT)
    if sent == signal.SIGINT:
        (code,) = [json.loads(each)["exit"] for each in records if '"exit"' in each]
        assert code["exit_code"] == 255


def _inspect(stored) -> list[str]:
    leet = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(stored)]
    return subprocess.run(leet, capture_output=True, text=True).stdout.splitlines()


# a run in the midst of an update that does not end
BUSY_FOR_EVER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from mobilenet_exp.machine.preemption import listening
with listening() as stop:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
        if stop.number:
            print("heard", flush=True)
"""


def test_a_second_ctrl_c_leaves_at_once():
    command = [sys.executable, "-c", BUSY_FOR_EVER, str(ROOT)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "heard\n"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130


def test_under_nohup_a_terminal_that_is_closed_asks_for_nothing():
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)" + BUSY_FOR_EVER
    command = [sys.executable, "-c", ignoring, str(ROOT)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    # heard once, of SIGTERM
    assert process.stdout.readline() == "heard\n"
    process.kill()
    process.wait()


# a signal comes while Python calls back for a weak reference, and the process then sleeps
SIGNALLED = """
import signal, sys, time, weakref
sys.path.insert(0, sys.argv[1])
from mobilenet_exp.machine.preemption import Stop, end_on_signals
# in a shell's background it is ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
end_on_signals()
thing = Stop()
died = weakref.ref(thing, lambda _: signal.raise_signal(int(sys.argv[2])))
del thing
print("dropped" if died() is None else "alive", flush=True)
time.sleep(60)
"""


# Python ends itself by SIGINT after KeyboardInterrupt
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_process_ends_even_where_python_drops_what_is_raised(sent, code):
    command = [sys.executable, "-c", SIGNALLED, str(ROOT), str(int(sent))]
    # less than it sleeps
    ended = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (ended.returncode, ended.stdout) in [(code, "dropped\n"), (code, "")]


def test_slurm_is_asked_to_run_the_job_again(tmp_path):
    """sbatch --signal=USR1@120 announces the end of the time; scontrol here is a stand-in."""
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "start_new_session": True}
    process = start(tmp_path, *BUSY, env=env, **quiet)
    wait_for(lambda: _saved(tmp_path), process)
    # Slurm tells all processes of a step, those that load images among them
    os.killpg(process.pid, signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "stopped by SIGUSR1 after epoch" in errors
    assert "Slurm job 4711 was requeued" in errors
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"


def test_several_processes_stop_at_the_same_update(tmp_path):
    words = (*WORDS, "train.epochs=400", "run.workers=0", "run.devices=2")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = start(tmp_path, *words, **pipes, start_new_session=True)
    wait_for(lambda: _saved(tmp_path), process)
    # to the whole group: the server that the processes are forked from must outlive it
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "stopped by SIGTERM" in errors
    found = state(folder_of(tmp_path))
    assert len(found["meters"]) == 2
    assert found["meters"][0]["num_images"] == found["meters"][1]["num_images"]


def test_a_run_is_open_in_one_process_only(tmp_path):
    process = start(tmp_path, *BUSY, stdout=subprocess.DEVNULL)
    wait_for(lambda: _saved(tmp_path), process)
    second = start(tmp_path, *BUSY, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, errors = second.communicate(timeout=60)
    kill(process)
    assert second.returncode == 2
    assert "another process is running tiny-w1-r32-fake-rmsprop-s0-" in errors
    assert errors.count("\n") == 1
    # the lock has gone with its process
    with locked(folder_of(tmp_path)):
        pass


# the system then refuses a write in the middle of a file, as a full disk does
SMALL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.argv = ["train.py", *sys.argv[1:]]
sys.path.insert(0, {root!r})
import runpy
runpy.run_path({root!r} + "/train.py", run_name="__main__")
"""


def test_a_full_disk_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    words = (*WORDS, "run.workers=0", f"run.root={tmp_path}/runs")
    process = start(tmp_path, *words[:-1], "train.epochs=400", stdout=subprocess.DEVNULL)
    wait_for(lambda: _saved(tmp_path), process)
    kill(process)
    path = _saved(tmp_path)[0]
    before = path.read_bytes()
    small_disk = SMALL_DISK.format(root=str(ROOT), limit=len(before) // 2)
    command = [sys.executable, "-c", small_disk, *words, "train.epochs=400"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert "last.pt could not be written: " in done.stderr or "best.pt could not" in done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.tmp"))
    assert load_checkpoint(path)["epoch"] >= 1


def test_a_checkpoint_of_another_configuration_is_refused(quick, tmp_path):
    small = ("data=fake", "data.resolution=32", "data.args.num_images=32", "train.epochs=1")
    first, second = quick(*small), quick(*small, "optimizer.lr=0.01")
    train(first)
    theirs = tmp_path / "runs" / run_name(second) / "checkpoints"
    theirs.mkdir(parents=True)
    ours = tmp_path / "runs" / run_name(first) / "checkpoints" / "last.pt"
    (theirs / "last.pt").write_bytes(ours.read_bytes())
    message = (
        r"last.pt was saved with a different configuration: optimizer.lr was 0.05, is now 0.01"
    )
    with pytest.raises(InputError, match=message):
        train(second)
    assert (theirs / "last.pt").read_bytes() == ours.read_bytes()


def test_damaged_checkpoints_without_a_previous_one_are_refused(quick, tmp_path):
    config = quick("data=fake", "data.resolution=32", "data.args.num_images=32", "train.epochs=1")
    folder = tmp_path / "runs" / run_name(config) / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(b"half")
    with pytest.raises(InputError, match=r"last.pt: cannot be read: damaged"):
        train(config)
    assert (folder / "last.pt").read_bytes() == b"half"


def test_a_run_outlives_its_dashboard(tmp_path):
    """W&B's own process is killed in the middle: one line, and the files are complete."""
    words = (*WORDS, "train.epochs=8", "run.workers=0", "run.wandb=offline")
    process = start(tmp_path, *words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(lambda: _saved(tmp_path), process)
    (service,) = children(process.pid, "wandb-core")
    os.kill(service, signal.SIGKILL)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert out.count("W&B stopped responding") == 1
    assert len(rows(folder_of(tmp_path))) == 8
    assert json.loads((folder_of(tmp_path) / "results.json").read_text())["epochs"] == 8


SMALL = (
    "data=fake", "data.resolution=32", "data.args.num_images=128", "data.batch_size=16",
    "train.epochs=2", "train.ema_decay=0.9",
)  # fmt: skip


def test_a_full_disk_ends_the_run_at_its_metrics_too(quick, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mobilenet_exp.tracking.tracker.os.fsync", full)
    with pytest.raises(RunError, match="metrics.jsonl could not be written: No space left"):
        train(quick(*SMALL))


@pytest.fixture(params=[errno.ENOLCK])
def without_locks(request, monkeypatch):
    """A file system without locks and hard links, as an object store's mount."""

    def refuse(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr("os.link", refuse)


@pytest.mark.parametrize(
    "without_locks", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO], indirect=True
)
def test_a_file_system_without_locks_is_one_line(without_locks, tmp_path):
    message = r"run.root=.*cannot lock files \(.*\); choose .*, or train with run.lock=false"
    with pytest.raises(InputError, match=message), locked(tmp_path / "runs" / "name"):
        pass


def test_without_locks_and_links_a_run_is_kept_and_resumed_by_one_s_word(
    without_locks, quick, tmp_path, capsys
):
    config = quick(*SMALL, "run.lock=false", "run.keep_best=2")
    with crash_before_saving(2):
        train(config)
    results = train(config)
    assert "resumed after epoch 1" in capsys.readouterr().out
    folder = tmp_path / "runs" / results["name"] / "checkpoints"
    assert load_checkpoint(folder / "best.pt")["epoch"] == results["best_epoch"]
    assert not (folder.parent / ".lock").exists()
    assert not list(folder.glob("*.tmp"))


def test_a_folder_made_for_nothing_is_removed_again(tmp_path):
    with locked(tmp_path / "runs" / "a"):
        pass
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "runs" / "a"):
        (tmp_path / "runs" / "a" / "config.yaml").write_text("")
    assert [path.name for path in tmp_path.rglob("*.yaml")] == ["config.yaml"]
