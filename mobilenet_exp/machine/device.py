"""The machine a process computes on: its device, its memory, how exact it repeats itself."""

import ctypes
import os
import sys

import torch

from mobilenet_exp.core.errors import InputError

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
        raise InputError("run.device", name, f"not on this machine; here: auto, {here}")
    return torch.device(name)


def autocast(device: torch.device) -> torch.autocast:
    """bf16 on CUDA; on a CPU it is slower than float32, so nothing there."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def memory_format(name: str) -> torch.memory_format:
    """Return torch's value for `run.memory_format`."""
    return torch.channels_last if name == "channels_last" else torch.contiguous_format


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory, and return whether it could be told to.

    By default glibc maps each large activation anew and gives it back at once, and the
    page faults cost more than the arithmetic. Does nothing but on Linux with glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def set_determinism(wanted: bool) -> None:
    """Allow only algorithms that repeat their bits, or let CUDA pick its fastest."""
    if wanted:
        # cuBLAS repeats itself only with a workspace of fixed size
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted
