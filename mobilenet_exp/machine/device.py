"""What a process computes on."""

import os

import torch

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.machine.arithmetic import Precision


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


def set_determinism(wanted: bool) -> None:
    """Allow only algorithms that give the same bits each time, or let CUDA pick its fastest."""
    if wanted:
        # cuBLAS gives the same bits only with a workspace of fixed size
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted
