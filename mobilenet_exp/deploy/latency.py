"""Measures the time of one forward, of several networks in several runtimes.

A cell is one network in one runtime. Its answers are compared with torch's own before it is
timed: a fast wrong answer is no result.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mobilenet_exp.core.console import Show
from mobilenet_exp.core.errors import InputError, RunError, first_line, in_plain_words
from mobilenet_exp.deploy.int8_check import check_answers
from mobilenet_exp.deploy.nets import Net, warm_batchnorm
from mobilenet_exp.deploy.runtimes import (
    INT8,
    LIBRARIES,
    Compute,
    Forward,
    InInt8,
    check_runtimes,
    prepare,
)
from mobilenet_exp.machine.compute import Precision
from mobilenet_exp.machine.memory import (
    forget_peak,
    gc_frozen,
    held_memory,
    most_since,
)

# largest allowed difference of an answer, relative to the largest answer
TOLERANCE = {Precision.FLOAT32: 1e-3, Precision.TF32: 2e-2}
TOLERANCE_OF_HALF = 1e-1
# side and number of the matrix products that measure the machine's peak
SIDE_OF_PRODUCT, PRODUCTS = {"cpu": 2048, "mps": 4096, "cuda": 8192}, 7
# a cell is warm once a forward is within this factor of its fastest so far
STABLE, MOST_WARMUPS = 1.1, 10
# of a cell's turn: seconds of rest before it, milliseconds that its forwards take at least
REST, TURN_MS = 0.02, 50.0


@dataclass
class Cell:
    """One network in one runtime, for one batch size."""

    net: Net
    runtime: str
    forward: Forward | None = None
    # why it is not timed
    problem: str = ""
    difference: float | None = None
    memory_mb: float | None = None
    times: list[float] = field(default_factory=list)


def measure_latency(
    nets: Sequence[Net],
    runtimes: Sequence[str],
    batch_sizes: Sequence[int],
    *,
    warmup: int,
    rounds: int,
    compute: Compute,
    peak: float,
    progress: Show,
) -> list[dict[str, Any]]:
    """Time one forward of each network in each runtime, on images of noise.

    All cells take turns in every round, so a slow minute of the machine hits them alike.
    `peak` is the machine's peak in GMAC/s. Returns
    a row for each batch size, network and runtime: see `row_of`. Raises InputError for a
    runtime that is not known or not installed.
    """
    check_runtimes(list(runtimes), compute)
    for net in nets:
        if net.is_random and any(each.endswith(INT8) for each in runtimes):
            warm_batchnorm(net.model, net.side)
    rows = []
    for batch_size in batch_sizes:
        cells = [Cell(net, each) for net in nets for each in _runtimes_of(net, runtimes)]
        images = {net.side: _noise(batch_size, net.side, compute) for net in nets}
        # last: what is compiled is forgotten when a network is lowered for ExecuTorch
        in_order = sorted(cells, key=lambda cell: cell.runtime == "compiled")
        with gc_frozen():
            for cell in progress(in_order, f"batch {batch_size}: prepare", len(cells)):
                _prepare(cell, images[cell.net.side], warmup, compute)
        for _ in progress(range(rounds), f"batch {batch_size}", rounds):
            for cell in cells:
                _take_turn(cell, images[cell.net.side])
        rows += [row_of(cell, batch_size, peak) for cell in cells]
        # what torch.compile has made is held until then
        cells.clear()
        torch._dynamo.reset()
    return rows


def _runtimes_of(net: Net, asked: Sequence[str]) -> Sequence[str]:
    return [net.own_runtime] if net.own_runtime else asked


def row_of(cell: Cell, batch_size: int, peak: float) -> dict[str, Any]:
    """Return what is known of a cell.

    `latency_ms` is the median of a batch, `lower_ms` and `upper_ms` are its quartiles;
    `madds` are of one image, `gmacs_per_s` achieved, `peak_share` is their part of the `peak`;
    `memory_mb` is what the cell needs, weights included, None where it cannot be separated from
    memory held before; `difference` is the largest one of an answer from torch's own, relative
    to the largest answer; an exported file has neither. `top1` was published. Where
    there is a `problem`, times and speeds are None.
    """
    row: dict[str, Any] = {
        "model": cell.net.title,
        "name": cell.net.name,
        "runtime": cell.runtime,
        "batch_size": batch_size,
        "resolution": cell.net.side,
        "madds": cell.net.profile.madds,
        "params": cell.net.profile.params,
        "top1": cell.net.top1,
        "memory_mb": cell.memory_mb,
        "difference": cell.difference,
        "problem": cell.problem,
    }
    keys = ("latency_ms", "lower_ms", "upper_ms", "fastest_ms", "slowest_ms",
            "images_per_s", "gmacs_per_s", "peak_share")  # fmt: skip
    row |= dict.fromkeys(keys)
    if not cell.times:
        return row
    middle = statistics.median(cell.times)
    lower, upper = quartiles(cell.times)
    per_s = 1000 * batch_size / middle
    speed = per_s * cell.net.profile.madds / 1e9
    figures = (middle, lower, upper, min(cell.times), max(cell.times), per_s, speed, speed / peak)
    return row | dict(zip(keys, figures, strict=True))


def quartiles(times: Sequence[float]) -> tuple[float, float]:
    """Return the lower and the upper quartile; of one time, that time."""
    if len(times) == 1:
        return times[0], times[0]
    lower, _, upper = statistics.quantiles(times, n=4, method="inclusive")
    return lower, upper


def peak_of(compute: Compute) -> float:
    """Return the speed of a large matrix product in GMAC/s."""
    side, dtype = SIDE_OF_PRODUCT[compute.device.type], compute.precision.dtype
    left, right = (torch.randn(side, side, device=compute.device, dtype=dtype) for _ in "lr")
    pixels = left.view(1, 32, side // 32, side).permute(0, 3, 1, 2)
    kernel = right.view(side, side, 1, 1).to(memory_format=torch.channels_last)
    times = [
        _time(product, left)
        for _ in range(PRODUCTS)
        # the second is the same product by the library that computes convolutions: on a CPU
        # of AMD that of the first leaves out half of what the processor can do
        for product in (lambda _: left @ right, lambda _: nn.functional.conv2d(pixels, kernel))
    ]
    return side**3 / 1e6 / min(times)


def _noise(batch_size: int, side: int, compute: Compute) -> Tensor:
    return torch.randn(batch_size, 3, side, side, device=compute.device)


def _prepare(cell: Cell, images: Tensor, warmup: int, compute: Compute) -> None:
    """Build a cell, compare it with torch's answers and warm it up, or note its problem."""
    try:
        before = held_memory(compute.device)
        forward = prepare(cell.runtime, cell.net.model, images, compute)
        # a file was opened before, and is there without the network it was made of
        if not cell.net.own_runtime:
            cell.memory_mb = _needed_memory(forward, images, before, cell.net)
            cell.difference = _difference(forward, cell.net, images, compute)
            if isinstance(forward, InInt8):
                check_answers(forward, forward.exact, cell.net.model, images, cell.runtime)
                forward = forward.forward
            elif not cell.difference <= TOLERANCE.get(compute.precision, TOLERANCE_OF_HALF):
                raise RunError(f"its answers differ from torch's by {cell.difference:.1e}")
        _warm_up(forward, images, warmup)
    except InputError:
        raise
    except Exception as error:
        _give_up(cell, error)
        return
    cell.forward = forward


def _take_turn(cell: Cell, images: Tensor) -> None:
    """Add a time to a cell that is ready, or give it up."""
    if cell.forward is None:
        return
    try:
        cell.times.append(_turn(cell.forward, images))
    except Exception as error:
        _give_up(cell, error)


def _give_up(cell: Cell, error: Exception) -> None:
    """Note why a cell has no figures; raise what is a defect of ours."""
    plain = in_plain_words(error)
    if not isinstance(plain, RunError):
        if cell.runtime not in LIBRARIES:
            raise error
        # libraries fail in as many ways as there are
        plain = RunError(f"fails: {first_line(error)}")
    cell.problem, cell.forward = str(plain), None
    cell.times.clear()


def _needed_memory(
    forward: Forward, images: Tensor, before: float | None, net: Net
) -> float | None:
    """Return the peak memory of a prepared forward above `before`, in MB."""
    _time(forward, images)
    # what preparing alone needed is gone
    held_memory(images.device)
    if before is None or not forget_peak(images.device):
        return None
    _time(forward, images)
    most = most_since(images.device)
    weights_mb = 4 * net.profile.params / 1e6
    return None if most is None or most - before < weights_mb else most - before


@torch.inference_mode()
def _difference(forward: Forward, net: Net, images: Tensor, compute: Compute) -> float:
    """Return how far answers are from the network's own in float32."""
    expected = net.model.to(compute.device)(images).float()
    found = forward(images).float()
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _warm_up(forward: Forward, images: Tensor, least: int) -> None:
    """Run until the time of a forward is stable."""
    fastest = float("inf")
    for number in range(max(least, 1) + MOST_WARMUPS):
        elapsed = _time(forward, images)
        if number + 1 >= least and fastest / STABLE <= elapsed <= STABLE * fastest:
            return
        fastest = min(fastest, elapsed)


@torch.inference_mode()
def _time(forward: Forward, images: Tensor) -> float:
    """Milliseconds of one forward, the device's work included."""
    wait_for(images.device)
    started = time.perf_counter()
    forward(images)
    wait_for(images.device)
    return (time.perf_counter() - started) * 1000


def _turn(forward: Forward, images: Tensor) -> float:
    """Milliseconds of a forward: the median of as many as a turn has time for."""
    # threads of the runtime before go on looking for work for some milliseconds
    time.sleep(REST)
    _time(forward, images)
    times = [_time(forward, images)]
    while sum(times) < TURN_MS:
        times.append(_time(forward, images))
    return statistics.median(times)


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
