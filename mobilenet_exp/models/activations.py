"""The activations of the networks, without needless copies of feature maps.

Torch's own in-place activations first copy their input where the gradient is computed from it.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class ReLU6(nn.ReLU6):
    """`nn.ReLU6` in place; its gradient is computed from the output: zero where that is 0 or 6."""

    def __init__(self) -> None:
        super().__init__(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        return relu6_(features)


class Hardswish(nn.Hardswish):
    """`nn.Hardswish`, in place only where no gradient is computed: the gradient needs the input."""

    def __init__(self) -> None:
        super().__init__(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        return hardswish(features)


@torch.fx.wrap
def relu6_(features: Tensor) -> Tensor:
    """Cut to [0, 6], in place."""
    if needs_grad(features) and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
        return _ReLU6.apply(features)
    return F.relu6(features, inplace=True)


@torch.fx.wrap
def hardswish(features: Tensor) -> Tensor:
    """Return x * relu6(x + 3) / 6; `features` may be changed."""
    # a traced graph must be the same with and without gradients
    return F.hardswish(features, inplace=not needs_grad(features) and not torch.jit.is_tracing())


def needs_grad(features: Tensor) -> bool:
    """Return whether gradients will be computed, so that activations must be kept."""
    return torch.is_grad_enabled() and features.requires_grad


class _ReLU6(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        ctx.mark_dirty(features)
        F.hardtanh(features, 0.0, 6.0, inplace=True)
        ctx.save_for_backward(features)
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, result, 0.0, 6.0)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": ReLU6,
    "hswish": Hardswish,
    "gelu": nn.GELU,
}
