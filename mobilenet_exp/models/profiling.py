"""Multiply-adds and parameters of any module, counted from the operators it runs.

Knows no model by name. Needs no weights in memory: counting runs on the meta device.
"""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from mobilenet_exp.core.errors import InputError

aten = torch.ops.aten


class Profile(NamedTuple):
    """`madds`: multiply-adds of one image; `params`: learnable values, BN affine included."""

    madds: int
    params: int

    def summary(self) -> dict[str, float]:
        """Return the figures by W&B's names for them, plain and in millions."""
        return {
            "model/madds": self.madds,
            "model/params": self.params,
            "model/madds_m": self.madds / 1e6,
            "model/params_m": self.params / 1e6,
        }


def profile_model(model: nn.Module, resolution: int, convention: str = "paper") -> Profile:
    """Count one forward of a (1, 3, resolution, resolution) image in eval mode.

    `paper`, the papers' convention: convolutions and matrix products only,
    squeeze-excite and attention included; no bias, normalisation, activation, pooling
    or shortcut. `kuanwang`, that of the counter behind kuan-wang's V3 table: the same, but
    an output of a linear layer costs 2 n - 1 for n inputs, and one of a convolution
    with bias (k k + 1) for each input channel of its group. The model itself is not
    changed. Raises InputError for another convention.
    """
    if convention not in CONVENTIONS:
        problem = f"not known; allowed: {', '.join(CONVENTIONS)}"
        raise InputError("convention", convention, problem)
    params = sum(parameter.numel() for parameter in model.parameters())
    ghost = copy.deepcopy(model).to("meta").eval()
    for module in ghost.modules():
        if isinstance(module, _BatchNorm):
            # costs nothing by either convention, and is slow to trace
            module.forward = _unchanged
    images = torch.empty(1, 3, resolution, resolution, device="meta")
    counter = FlopCounterMode(display=False, custom_mapping=CONVENTIONS[convention])
    with torch.no_grad(), counter:
        ghost(images)
    return Profile(madds=counter.get_total_flops() // 2, params=params)


def _unchanged(features: Tensor) -> Tensor:
    return features


# The counter halves what these give, as it does torch's own floating-point operations.


def _kuanwang_convolution(images, weight, bias, *_, out_shape, **__) -> int:
    # weight (out, in / groups, k, k); a bias adds one to each k x k
    _, in_channels, *kernel = weight
    return 2 * math.prod(out_shape) * in_channels * (math.prod(kernel) + (bias is not None))


def _kuanwang_linear(*shapes, out_shape, **_) -> int:
    # mm(inputs, weight), or addmm(bias, inputs, weight)
    inputs, _ = shapes[-2:]
    return 2 * math.prod(out_shape) * (2 * inputs[-1] - 1)


CONVENTIONS: dict[str, dict[object, Callable]] = {
    "paper": {},
    "kuanwang": {
        aten.convolution: _kuanwang_convolution,
        aten.mm: _kuanwang_linear,
        aten.addmm: _kuanwang_linear,
    },
}
