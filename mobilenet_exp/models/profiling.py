"""Multiply-adds and parameters of any module, counted from the operators it runs.

Counting runs on the meta device and needs no weights in memory.
"""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
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
    counter = FlopCounterMode(display=False, custom_mapping=CONVENTIONS[convention])
    with torch.no_grad(), counter:
        _ghost(model)(torch.empty(1, 3, resolution, resolution, device="meta"))
    return Profile(madds=counter.get_total_flops() // 2, params=num_params(model))


class BlockCost(NamedTuple):
    """What one block of a network costs, as a `Profile` counts it."""

    block: str
    madds: int
    params: int


def profile_blocks(model: nn.Module, resolution: int) -> list[BlockCost]:
    """Count each block by the papers' convention, in the order of the network.

    Together they cost what `profile_model` counts, but for what is done outside blocks.
    """
    return sum_blocks(model, profile_layers(model, resolution))


class LayerCost(NamedTuple):
    """What one layer of a network costs, as a `Profile` counts it; `kind` is its class's name."""

    layer: str
    kind: str
    madds: int
    params: int


def profile_layers(model: nn.Module, resolution: int) -> list[LayerCost]:
    """Count each layer that costs anything by the papers' convention, in the order of the network.

    A module's own operations count, not those of its submodules; the sum is what
    `profile_model` counts.
    """
    ghost = _ghost(model)
    counter = FlopCounterMode(display=False, custom_mapping=CONVENTIONS["paper"])
    with torch.no_grad(), counter:
        ghost(torch.empty(1, 3, resolution, resolution, device="meta"))
    # of a module and all that is within it, by `Net.blocks.0`
    flops = {name: sum(by_op.values()) for name, by_op in counter.get_flop_counts().items()}
    found = []
    for name, module in ghost.named_modules():
        path = ".".join(filter(None, (type(ghost).__name__, name)))
        inner = sum(flops.get(f"{path}.{part}", 0) for part, _ in module.named_children())
        madds = (flops.get(path, 0) - inner) // 2
        params = sum(each.numel() for each in module.parameters(recurse=False))
        if madds or params:
            found.append(LayerCost(name, type(module).__name__, madds, params))
    return found


def sum_blocks(model: nn.Module, layers: list[LayerCost]) -> list[BlockCost]:
    """Return what each block costs, from the costs of all layers."""
    return [
        BlockCost(
            name,
            sum(each.madds for each in layers if f"{each.layer}.".startswith(f"{name}.")),
            num_params(block),
        )
        for name, block in blocks_of(model).items()
    ]


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the top-level modules of a network by name; the modules of a list one by one."""
    found: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        # of a list, a traced network has a module that only holds the parts
        if isinstance(child, (nn.Sequential, nn.ModuleList)) or type(child) is nn.Module:
            found |= {f"{name}.{inner}": part for inner, part in child.named_children()}
        else:
            found[name] = child
    return found


def num_params(model: nn.Module) -> int:
    """Return the number of learnable values, BatchNorm's included."""
    return sum(parameter.numel() for parameter in model.parameters())


def _ghost(model: nn.Module) -> nn.Module:
    """Return a copy without values, whose forward takes no time."""
    ghost = copy.deepcopy(model).to("meta").eval()
    for module in ghost.modules():
        if isinstance(module, _BatchNorm):
            # costs nothing by either convention, and is slow to trace
            module.forward = lambda features: features
    return ghost


# These return twice the count, as torch's own formulas do; the total is halved.


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
