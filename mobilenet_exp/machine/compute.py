"""What a job computes on and in: device, precision, memory format, CPU threads and memory."""

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from mobilenet_exp.core.errors import InputError

# of glibc's <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# seconds for which other programs are watched
WATCHED = 0.3
STAT = Path("/proc/stat")
# fields of a core's line that count time in which it had nothing to do
IDLE, IO_WAIT = 3, 4


class Precision(StrEnum):
    """What convolutions and matrix products compute in; weights are always float32.

    tf32 is float32 whose products a CUDA device rounds to 10 bits.
    """

    FLOAT32 = "float32"
    TF32 = "tf32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of a layer's output."""
        return torch.float32 if self is Precision.TF32 else getattr(torch, self)


@dataclass(frozen=True)
class Compute:
    """What a job computes on and in.

    `precision` is that of the job, `eval_precision` that of a training's evaluations, `threads`
    those of the CPU.
    """

    device: torch.device
    precision: Precision = Precision.FLOAT32
    eval_precision: Precision = Precision.FLOAT32
    memory_format: torch.memory_format = torch.contiguous_format
    threads: int = 1

    def describe(self, processes: int = 1) -> str:
        """Return one line about it, e.g. `2 x cpu, float32, 1 thread each`."""
        text = f"{processes} x {self.device}".removeprefix("1 x ") + f", {self.precision}"
        if self.device.type == "cpu":
            threads = torch.get_num_threads()
            text += f", {threads} thread" + ("s" if threads > 1 else "")
            text += " each" if processes > 1 else ""
        return text


def select_compute(run: Any, *, half: bool) -> Compute:
    """Resolve what `run` leaves open; device=auto is cuda, mps or cpu, the first that is there.

    `half`: precision=auto may be half precision on CUDA.

    Raises InputError for a device that is not there, or a precision that it does not have.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    here = [kind for kind, is_present in present.items() if is_present]
    kind = here[0] if run.device == "auto" else run.device
    if kind not in here:
        problem = f"not on this machine, which has: auto, {', '.join(here)}"
        raise InputError("run.device", run.device, problem)
    device = torch.device(kind)
    # a benchmark's runtimes each have a format of their own
    layout = getattr(run, "memory_format", "auto")
    if layout == "auto":
        # on MPS BatchNorm's backward pass fails with channels_last in some versions of torch
        layout = "contiguous" if device.type == "mps" else "channels_last"
    return Compute(
        device,
        select_precision(run.precision, device, half=half),
        select_precision(run.precision, device, half=False),
        torch.channels_last if layout == "channels_last" else torch.contiguous_format,
        torch.get_num_threads(),
    )


def set_up(run: Any, *, half: bool, leaves_busy_cores: bool) -> tuple[Compute, list[str]]:
    """Set this process up to compute as `run` says; return that, and lines for a person.

    `leaves_busy_cores`: use no CPU threads on the cores of other programs, where the number is
    left open.
    """
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    compute = select_compute(run, half=half)
    set_tf32(compute.precision)
    if compute.device.type != "cpu":
        return compute, []
    # Weight decay makes denormals of filters that have died, and a CPU computes with them about
    # 100 times slower: with a third of such filters a step of V2 took ten times as long.
    torch.set_flush_denormal(True)
    if run.keep_memory:
        keep_freed_memory()
    line = leave_busy_cores() if leaves_busy_cores and run.threads is None else ""
    compute = replace(compute, threads=torch.get_num_threads())
    return compute, [line] if line else []


def select_precision(name: str, device: torch.device, *, half: bool) -> Precision:
    """Resolve `run.precision`: auto is half precision on CUDA if `half` says so, else float32.

    Half precision is bfloat16, or float16 on a GPU which only emulates it. On a CPU both are
    usually slower than float32, and an evaluation is to give the figures of the weights, not of
    their rounding. Raises InputError for what the device does not have.
    """
    if name == Precision.TF32 and device.type != "cuda":
        raise InputError("run.precision", name, f"only CUDA devices have it, not {device.type}")
    if name != "auto":
        return Precision(name)
    if not half or device.type != "cuda":
        return Precision.FLOAT32
    has_it = torch.cuda.is_bf16_supported(including_emulation=False)
    return Precision.BFLOAT16 if has_it else Precision.FLOAT16


def set_tf32(precision: Precision) -> None:
    """Let CUDA round the products of float32 to TF32, or forbid it; torch's default is in part.

    It holds for the process: backward passes follow it, too.
    """
    torch.backends.cudnn.allow_tf32 = precision is Precision.TF32
    torch.backends.cuda.matmul.allow_tf32 = precision is Precision.TF32


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory, and return whether it will.

    By default glibc maps each large activation anew and gives it back at once, and the
    page faults cost more than the arithmetic. Only works on Linux with glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


@contextlib.contextmanager
def keeping_threads() -> Iterator[None]:
    """Leave this process's number of CPU threads as it was: the next job chooses its own."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def leave_busy_cores() -> str:
    """Compute with no more threads than there are idle cores; return a line if that is fewer.

    Threads of one sum wait for the last of them: beside two busy programs on two cores, two
    threads trained 8 images/s and one 473. OMP_NUM_THREADS is left as it is.
    """
    most = torch.get_num_threads()
    if most == 1 or os.environ.get("OMP_NUM_THREADS"):
        return ""
    idle = idle_cores()
    threads = most if idle is None else max(1, min(most, round(idle)))
    if threads == most:
        return ""
    torch.set_num_threads(threads)
    return (
        f"{threads} of {most} CPU threads, for other programs use the cores now; "
        f"run.threads={most} takes all"
    )


def idle_cores(seconds: float = WATCHED) -> float | None:
    """Return how many of this process's cores had nothing to do for a while; None: unknown."""
    # what each core has done since the machine's start, in ticks, by kind; now and after a while
    looks: list[dict[int, list[int]]] = []
    try:
        for _ in range(2):
            if looks:
                time.sleep(seconds)
            lines = [line.split() for line in STAT.read_text().splitlines()]
            looks.append(
                {
                    # the last two fields are parts of the first two
                    int(name.removeprefix("cpu")): [int(each) for each in ticks[:8]]
                    for name, *ticks in lines
                    if name.startswith("cpu") and name != "cpu"
                }
            )
        mine = os.sched_getaffinity(0)
    except (OSError, ValueError, AttributeError):
        return None
    before, after = looks
    idle = 0.0
    for core in mine & before.keys() & after.keys():
        spent = [now - then for now, then in zip(after[core], before[core], strict=True)]
        idle += (spent[IDLE] + spent[IO_WAIT]) / max(sum(spent), 1)
    return idle


def autocast(
    device: torch.device, precision: Precision, *, caches_weights: bool = True
) -> torch.autocast:
    """Run convolutions and matrix products in `precision`; float32 and tf32 change nothing.

    `caches_weights`: keep converted weights until the end; a CUDA graph must not.
    """
    is_half = precision.dtype is not torch.float32
    dtype = precision.dtype if is_half else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=is_half, cache_enabled=caches_weights)


def set_determinism(wanted: bool) -> None:
    """Allow only algorithms that give the same bits each time, or let CUDA pick its fastest."""
    if wanted:
        # cuBLAS gives the same bits only with a workspace of fixed size
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted
