"""What a process computes in: the precision of its numbers and their layout in memory."""

from enum import StrEnum

import torch

from mobilenet_exp.core.errors import InputError


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

    @property
    def needs_scaler(self) -> bool:
        """Return whether gradients are too small for it unless the loss is scaled."""
        return self is Precision.FLOAT16


def select_precision(name: str, device: torch.device, *, is_training: bool) -> Precision:
    """Resolve `run.precision`: auto trains in half precision on CUDA; else it is float32.

    That is bfloat16, or float16 on a GPU which only emulates it. On a CPU both are usually
    slower than float32, and an evaluation is to give the figures of the weights, not of
    their rounding. Raises InputError for what the device does not have.
    """
    if name == Precision.TF32 and device.type != "cuda":
        raise InputError("run.precision", name, f"only CUDA devices have it, not {device.type}")
    if name != "auto":
        return Precision(name)
    if not is_training or device.type != "cuda":
        return Precision.FLOAT32
    has_it = torch.cuda.is_bf16_supported(including_emulation=False)
    return Precision.BFLOAT16 if has_it else Precision.FLOAT16


def set_tf32(precision: Precision) -> None:
    """Let CUDA round the products of float32 to TF32, or forbid it; by itself torch does in part.

    It holds for the process: backward passes follow it, too.
    """
    torch.backends.cudnn.allow_tf32 = precision is Precision.TF32
    torch.backends.cuda.matmul.allow_tf32 = precision is Precision.TF32


def autocast(
    device: torch.device, precision: Precision, *, caches_weights: bool = True
) -> torch.autocast:
    """Run convolutions and matrix products in `precision`; float32 and tf32 change nothing.

    `caches_weights`: keep converted weights until the end; a CUDA graph must not.
    """
    is_half = precision.dtype is not torch.float32
    dtype = precision.dtype if is_half else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=is_half, cache_enabled=caches_weights)


def memory_format(name: str, device: torch.device) -> torch.memory_format:
    """Resolve `run.memory_format`: auto is channels_last, but contiguous on MPS.

    There BatchNorm's backward pass fails with channels_last in some versions of torch.
    """
    if name == "auto":
        name = "contiguous" if device.type == "mps" else "channels_last"
    return torch.channels_last if name == "channels_last" else torch.contiguous_format
