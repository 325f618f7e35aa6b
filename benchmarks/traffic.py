"""What a training step moves through memory at least, and how fast a device moves memory.

Each operator reads its inputs once and writes its outputs once: what a step takes that
never finds a tensor in a cache, and never computes two operators in one pass.
"""

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# images of two passes, whose difference is what an image adds
FEW, MORE = 2, 6
# bytes that are copied to see how fast that is, beyond any cache
COPIED = 1 << 30
SECONDS = 0.5


class _Counting(TorchDispatchMode):
    """Adds up the bytes of tensors that operators read and write, and those of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.all_bytes = self.convolution_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read = _storages((args, kwargs))
        written = _storages(out)
        # a view moves nothing
        if not set(written) <= set(read) or func._schema.is_mutable:
            moved = sum(read.values()) + sum(written.values())
            self.all_bytes += moved
            if "convolution" in func.name():
                self.convolution_bytes += moved
        return out


def _storages(values: Any) -> dict[int, int]:
    """Return the bytes of the tensors among `values`, by their memory's address."""
    tensors = [each for each in tree_leaves(values) if isinstance(each, Tensor)]
    return {
        each.untyped_storage()._cdata: each.numel() * each.element_size()
        for each in tensors
        if each.numel()
    }


def bytes_per_image(model: nn.Module, side: int, dtype: torch.dtype) -> tuple[float, float]:
    """Return the bytes of a forward and a backward pass of one image, and of its convolutions.

    `model` is on the CPU, in training mode; `side` is in pixels. What does not grow with the
    number of images, as weights, is not counted.
    """
    few, more = (_counted(model, side, dtype, count) for count in (FEW, MORE))
    return tuple((after - before) / (MORE - FEW) for before, after in zip(few, more, strict=True))


def _counted(model: nn.Module, side: int, dtype: torch.dtype, count: int) -> tuple[int, int]:
    images, labels = torch.randn(count, 3, side, side), torch.zeros(count, dtype=torch.long)
    is_half = dtype is not torch.float32
    # or gradients would be added to others
    model.zero_grad()
    with _Counting() as counting:
        with torch.autocast("cpu", dtype if is_half else torch.bfloat16, enabled=is_half):
            loss = nn.functional.cross_entropy(model(images).float(), labels)
        loss.backward()
    return counting.all_bytes, counting.convolution_bytes


def bandwidth(device: torch.device) -> float:
    """Return how many bytes a second a device reads and writes when it copies."""
    size = COPIED if device.type == "cuda" else COPIED // 8
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    there = torch.empty_like(source)
    there.copy_(source)
    wait(device)
    copies, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        for _ in range(10):
            there.copy_(source)
        copies += 10
        wait(device)
    return 2 * size * copies / (time.perf_counter() - started)


def wait(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
