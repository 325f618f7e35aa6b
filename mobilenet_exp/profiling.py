"""Multiply-adds and parameters of any module, counted from the operators it runs.

Knows no model by name. Needs no weights in memory: counting runs on the meta device.
"""

import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Profile(NamedTuple):
    """`madds`: multiply-adds of one image; `params`: learnable values, BN affine included."""

    madds: int
    params: int


def profile_model(model: nn.Module, resolution: int) -> Profile:
    """Count one forward of a (1, 3, resolution, resolution) image in eval mode.

    The papers' convention: convolutions and matrix products only, squeeze-excite
    included; no bias, normalisation, activation, pooling or shortcut. The model itself
    is left as it was.
    """
    params = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    ghost = copy.deepcopy(model).to("meta").eval()
    images = torch.empty(1, 3, resolution, resolution, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ghost(images)
    return Profile(madds=counter.get_total_flops() // 2, params=params)
