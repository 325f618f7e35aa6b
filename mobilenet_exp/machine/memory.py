"""How much memory a process holds, and has held."""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

STATUS, FORGET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the most memory that this process has held so far, in MB, and on its GPU."""
    peaks = {}
    if (most := _most_held()) is not None:
        peaks["peak_memory_mb"] = most
    if device.type == "cuda":
        peaks["peak_device_memory_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return peaks


def _most_held() -> float | None:
    """Return the most memory that this process has held, in MB; None where none counts it."""
    # what getrusage counts includes the process that started this one
    if (most := _status("VmHWM:")) is not None:
        return most
    try:
        import resource
    except ImportError:
        return None
    # bytes on macOS, kilobytes elsewhere
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _status(field: str) -> float | None:
    """Return a field of Linux's account of this process, in MB."""
    try:
        return int(STATUS.read_text().partition(field)[2].split()[0]) / 1e3
    except (OSError, IndexError, ValueError):
        return None


def held_memory(device: torch.device) -> float | None:
    """Return the memory that is held now, in MB: a GPU's, or this process's on Linux.

    What is freed but kept for later is given back first.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device) / 1e6
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
    return _status("VmRSS:")


@contextlib.contextmanager
def gc_frozen() -> Iterator[None]:
    """Let `held_memory` look for garbage among what is made inside: else it takes 0.3 s."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def forget_peak(device: torch.device) -> bool:
    """Let `most_since` count from now; return whether it can be counted here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        # Linux's word for its high-water mark
        FORGET_PEAK.write_text("5")
    except OSError:
        return False
    return True


def most_since(device: torch.device) -> float | None:
    """Return the most memory held since `forget_peak`, in MB; see `held_memory`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return _status("VmHWM:")
