"""Checks that a runtime's answers are those of an int8 network's integers; if not, says why."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mobilenet_exp.core.errors import RunError
from mobilenet_exp.deploy.formats import to_onnx
from mobilenet_exp.weights.runtime_files import open_onnx

# Two runtimes round a few values of the same integers differently, and each such difference
# causes others in the next layers: after some layers the runtimes are as far from each other as
# int8 is from float32. Sums that overflow change answers by several times that.
TIMES_NOISE = 2.0
# a part of the answers' size that is never refused
LEAST_NOISE = 0.05


@torch.inference_mode()
def check_answers(
    forward: Callable,
    exact: nn.Module,
    network: nn.Module,
    images: Tensor,
    runtime: str,
) -> None:
    """Raise RunError for a runtime whose answers are not those of a network's integers.

    `exact` is the `network` after convert_pt2e, in which torch computes one operator after the
    other. All images go through each at once: a runtime may take so many alone. The error says
    whether the processor is at fault or the file.
    """
    expected = exact(images)
    limit = max(LEAST_NOISE, TIMES_NOISE * _distance(expected, network(images)))
    off = _distance(forward(images), expected)
    if off <= limit:
        return
    problem = f"its answers differ by {off:.2g} of their size from what its integers give"
    if runtime.startswith(("onnx", "openvino")):
        # the same file, one operator after the other and in float32
        plain, _ = open_onnx(to_onnx(exact, images), "runtimes", None, is_plain=True)
        if _distance(plain(images), expected) <= limit:
            why = "this processor adds up products in 16 bits, which overflow: it lacks VNNI"
            raise RunError(f"{problem}; {why}; int8_weights=7 avoids it")
    raise RunError(f"{problem}: {runtime} computes the file otherwise than it says")


def _distance(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()
