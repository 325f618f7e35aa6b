"""Whether a runtime answers as the integers of a network in int8 say, and if not, why."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mobilenet_exp.core.errors import RunError
from mobilenet_exp.core.libraries import library
from mobilenet_exp.deploy.formats import to_onnx
from mobilenet_exp.weights.exported import open_onnx

# most by which answers may differ, as a part of their own size (both as norms over all images):
# where runtimes round halves or clip otherwise they differ by hundredths, sums that overflow
# change answers by a third and more
TOLERANCE = 0.2
# images that go through a network at once
PART = 32


@torch.inference_mode()
def check_answers(forward: Callable, exact: nn.Module, images: Tensor, runtime: str) -> float:
    """Return how far a runtime's answers are from what the integers of `exact` give.

    `exact` is the network after convert_pt2e, in which torch computes one operator after the
    other. Raises RunError above TOLERANCE, which says whether the processor is at fault.
    """
    expected = _answers(exact, images)
    off = _distance(_answers(forward, images), expected)
    print("OFF", runtime, off)
    if off <= TOLERANCE:
        return off
    problem = f"its answers differ by {off:.2g} of their size from what its integers give"
    if runtime.startswith(("onnx", "openvino")) and library("onnxruntime", "runtimes", runtime):
        # the same file, one operator after the other and in float32
        plain, _ = open_onnx(to_onnx(exact, images), "runtimes", None, is_plain=True)
        if _distance(_answers(plain, images), expected) <= TOLERANCE:
            why = (
                "this processor adds up products of int8 in 16 bits, which overflow: it lacks VNNI"
            )
            raise RunError(f"{problem}: {why}; int8_weights=7 avoids it")
    raise RunError(f"{problem}: {runtime} computes the file otherwise than it says")


def _answers(forward: Callable, images: Tensor) -> Tensor:
    return torch.cat([forward(part.contiguous()) for part in images.split(PART)])


def _distance(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()
