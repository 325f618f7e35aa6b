"""What a process computes on: its device and memory."""

import ctypes
import os
import sys
from pathlib import Path

import torch

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.machine.arithmetic import Precision

# of glibc's <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def select_device(name: str) -> torch.device:
    """Resolve `auto` to cuda, mps or cpu, in this order. Raises InputError if absent."""
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, is_present in present.items() if is_present)
    if not present[name]:
        here = ", ".join(kind for kind, is_present in present.items() if is_present)
        raise InputError("run.device", name, f"not on this machine, which has: auto, {here}")
    return torch.device(name)


def describe_device(device: torch.device, processes: int, precision: Precision) -> str:
    """Say what a job computes on, e.g. `2 x cpu, float32, 1 thread each`."""
    words = f"{processes} x {device}".removeprefix("1 x ")
    words += f", {precision}"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        words += f", {threads} thread" + ("s" if threads > 1 else "")
        words += " each" if processes > 1 else ""
    return words


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory, and return whether it could be told to.

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


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the most memory that this process has held so far, in MB, and on its GPU."""
    found = {}
    if (most := _most_held()) is not None:
        found["peak_memory_mb"] = most
    if device.type == "cuda":
        found["peak_device_memory_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return found


def _most_held() -> float | None:
    """Return the most memory that this process has held, in MB; None where none counts it."""
    try:
        # what getrusage counts includes the process that started this one
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1e3
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return None
    # bytes on macOS, kilobytes elsewhere
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def set_determinism(wanted: bool) -> None:
    """Allow only algorithms that give the same bits each time, or let CUDA pick its fastest."""
    if wanted:
        # cuBLAS gives the same bits only with a workspace of fixed size
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted
