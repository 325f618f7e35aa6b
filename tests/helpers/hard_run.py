"""A run with everything in it that resuming could get wrong, for the tests that kill it."""

import json
import signal
import subprocess
import time
from pathlib import Path

import programs
import torch

# augmentation, mixing, parts, workers, dropout, averages; an update takes milliseconds
WORDS = (
    "model.name=tiny", "run.imports=[tiny_net]", "model.dropout=0.2", "model.stochastic_depth=0.1",
    "model.stem_stride=2",
    "data=fake", "data.resolution=32", "data.batch_size=16", "data.args.num_images=160",
    "data.augment=random_resized_crop", "data.auto_augment=rand-m9-mstd0.5",
    "data.random_erase=0.3", "data.erase_mode=pixel", "data.mixup=0.2", "data.cutmix=1.0",
    "data.repeats=2", "optimizer=rmsprop", "schedule.noise=[0.2,0.9]",
    "train.epochs=6", "train.accumulate=2", "train.ema_decay=0.99", "train.clip_grad_norm=5",
    "train.label_smoothing=0.1", "train.precise_bn_batches=2", "run.device=cpu",
    "run.wandb=disabled",
)  # fmt: skip


def start(folder: Path, *words: str, **options) -> programs.Warm:
    """Start `train.py` in `folder`, with one thread a process so that sums repeat."""
    return programs.start(folder, "train.py", *words, f"run.root={folder}/runs", **options)


def finish(folder: Path, *words: str) -> Path:
    """Run to the end and return the run's folder."""
    process = start(folder, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, out + errors
    return folder_of(folder)


def folder_of(root: Path) -> Path:
    (config,) = root.glob("runs/*/config.yaml")
    return config.parent


def wait_for(condition, process: programs.Warm | None = None, seconds: float = 120) -> None:
    """Wait until `condition()` holds, while `process` is alive."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        assert process is None or process.poll() is None, "the process has ended"
        time.sleep(0.01)


def kill(process: programs.Warm) -> None:
    """End a process and its workers as a power cut does."""
    process.send_signal(signal.SIGKILL)
    process.wait()


def ranks(process: programs.Warm) -> list[int]:
    """Return the processes that train together, started by `run.devices`."""
    return children(process.pid, "run_rank")


def is_running(pid: int) -> bool:
    """Return whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def children(parent: int, word: str) -> list[int]:
    """Return the processes that `parent` started with `word` in their command, oldest first."""
    # -ww: whole commands, however narrow the terminal says it is
    command = ["ps", "-ww", "-eo", "pid,ppid,args"]
    listed = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    fields = [line.split(None, 2) for line in listed[1:] if word in line]
    return sorted(int(pid) for pid, started_by, _ in fields if int(started_by) == parent)


# what a clock measures, and how much memory was held
TIMING = {"speed/images_per_s", "speed/waiting_percent", "system/peak_memory_mb"}


def rows(folder: Path) -> list[dict]:
    """Return the metrics of a run's epochs without what a clock measures."""
    return [
        {key: value for key, value in row.items() if key not in TIMING}
        for row in metrics(folder / "metrics.jsonl")
    ]


def metrics(path: Path, axis: str = "epoch") -> list[dict]:
    """Return the rows of a metrics file by epoch, or by step."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if axis in row]


def state(folder: Path, name: str = "last.pt") -> dict:
    """Return a run's checkpoint without what a clock measures."""
    found = torch.load(folder / "checkpoints" / name, weights_only=True)
    found["progress"].pop("seconds")
    found["config"].pop("run")
    for meter in found["meters"]:
        meter.pop("seconds")
        meter.pop("waiting")
    return found


def assert_same(ours, theirs, where: str = "") -> None:
    """Assert equality to the last bit, through dicts and lists."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{where}/{index}")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    else:
        assert ours == theirs, where
