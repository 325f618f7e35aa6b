"""Forward latency of networks side by side, ours and torchvision's.

Knows names and timing; prints nothing.
"""

import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torchvision import models

from mobilenet_exp.core.console import Show
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.models import build_model
from mobilenet_exp.models.profiling import Profile, profile_model

PEER = "torchvision:"

# marvis/pytorch-mobilenet README @648ce16: seconds * 1000 of one forward of the batch
# on a Titan X, by (model, batch size).
OLD_TABLE_MS = {
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


def measure_latency(
    names: Iterable[str],
    batch_sizes: Iterable[int],
    *,
    resolution: int,
    warmup: int,
    rounds: int,
    device: torch.device,
    progress: Show,
) -> list[dict[str, Any]]:
    """Time one forward of each net, float32, eval mode, random weights and images.

    All nets take turns in every round, so a slow minute of the machine hits them alike.
    Returns a row per batch size and net: `model`, `batch_size`, `latency_ms` (median),
    `fastest_ms`, `slowest_ms` (all per batch), `madds` (of one image), `params`,
    `old_ms` (the old table's figure or None). Raises InputError for an unknown name.
    """
    nets = {name: _build(name).eval().to(device) for name in names}
    profiles = {name: _profile(name, net, resolution) for name, net in nets.items()}
    rows = []
    for batch_size in batch_sizes:
        images = torch.randn(batch_size, 3, resolution, resolution, device=device)
        times: dict[str, list[float]] = {name: [] for name in nets}
        turns = range(-warmup, rounds)
        for turn in progress(turns, f"batch {batch_size}", len(turns)):
            for name, net in nets.items():
                elapsed = _time_forward(net, images)
                if turn >= 0:
                    times[name].append(elapsed)
        rows += [
            {
                "model": name,
                "batch_size": batch_size,
                "latency_ms": statistics.median(times[name]),
                "fastest_ms": min(times[name]),
                "slowest_ms": max(times[name]),
                "madds": profiles[name].madds,
                "params": profiles[name].params,
                "old_ms": OLD_TABLE_MS.get((name, batch_size)) if resolution == 224 else None,
            }
            for name in nets
        ]
    return rows


def _build(name: str) -> nn.Module:
    if not name.startswith(PEER):
        return build_model(name)
    peer = name.removeprefix(PEER)
    # classifiers only: detectors would fetch a backbone's weights
    if peer not in models.list_models(module=models):
        raise InputError("models", name, "not a classifier of torchvision.models.list_models()")
    return models.get_model(peer, weights=None)


def _profile(name: str, net: nn.Module, resolution: int) -> Profile:
    try:
        return profile_model(net, resolution)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "its layers do not fit"
        raise InputError("resolution", resolution, f"{name} does not take it: {reason}") from error


@torch.inference_mode()
def _time_forward(net: nn.Module, images: torch.Tensor) -> float:
    """Milliseconds of one forward, the device's work included."""
    _wait_for(images.device)
    started = time.perf_counter()
    net(images)
    _wait_for(images.device)
    return (time.perf_counter() - started) * 1000


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
