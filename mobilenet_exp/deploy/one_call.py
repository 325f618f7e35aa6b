"""How the old V1 repository timed networks, and what it published."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mobilenet_exp.core.errors import RunError, in_plain_words
from mobilenet_exp.deploy.nets import Net
from mobilenet_exp.deploy.runtimes import Compute
from mobilenet_exp.machine.compute import autocast

# marvis/pytorch-mobilenet README @648ce16: seconds * 1000 of one forward of the batch
# on a Titan X, by (model, batch size).
TABLE_MS = {
    ("torchvision:resnet18", 16): 4.030,
    ("torchvision:alexnet", 16): 1.395,
    ("torchvision:vgg16", 16): 2.310,
    ("torchvision:squeezenet1_0", 16): 9.848,
    ("v1", 16): 73.611,
    ("torchvision:resnet18", 1): 3.688,
    ("torchvision:alexnet", 1): 1.179,
    ("torchvision:vgg16", 1): 2.055,
    ("torchvision:squeezenet1_0", 1): 3.385,
    ("v1", 1): 76.977,
}


@dataclass(frozen=True)
class OneCall:
    """One call of a network, in ms, and what the old table has for it at its own side."""

    model: str
    batch_size: int
    ms: float
    published_ms: float | None


def measure_one_call(
    nets: Sequence[Net], batch_sizes: Sequence[int], compute: Compute
) -> list[OneCall]:
    """Time networks as benchmark.py of that repository did.

    One untimed call and one timed, no wait for the device, BatchNorm and dropout in training
    mode. What does not fit the memory is left out.
    """
    found = []
    for batch_size in batch_sizes:
        for net in (each for each in nets if not each.own_runtime):
            images = torch.randn(batch_size, 3, net.side, net.side, device=compute.device)
            try:
                with autocast(compute.device, compute.precision):
                    ms = _one_call(net.model.to(compute.device), images)
            except Exception as error:
                # BatchNorm cannot learn from a single pixel, either
                if isinstance(in_plain_words(error), RunError) or isinstance(error, ValueError):
                    continue
                raise
            published = TABLE_MS.get((net.name, batch_size)) if net.side == 224 else None
            found.append(OneCall(net.title, batch_size, ms, published))
    return found


def _one_call(model: nn.Module, images: Tensor) -> float:
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    try:
        with torch.no_grad():
            model(images)
            started = time.perf_counter()
            model(images)
            return (time.perf_counter() - started) * 1000
    finally:
        model.eval()
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
