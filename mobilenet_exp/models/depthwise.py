"""A depthwise convolution with a fast weight gradient on maps smaller than its kernel.

On a CPU, oneDNN has no fast weight gradient for such maps: for 576 channels of 1x1 pixels and
a 5x5 kernel, batch 128, it takes 45 ms, `weight_gradient` at most 0.1 ms
(`benchmarks/step.py`).
"""

import torch
import torch.fx
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` with as many groups as channels, the same results, and no bias."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__(
            channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False
        )

    def forward(self, features: Tensor) -> Tensor:
        return depthwise_conv(features, self.weight, self.stride[0])


@torch.fx.wrap
def depthwise_conv(features: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Convolve each channel (N, C, H, W) with its own kernel, padded by half of it."""
    if _is_slow_for(features, weight):
        return _Depthwise.apply(features, weight, stride, weight.shape[-1] // 2)
    return torch.conv2d(
        features, weight, None, stride, weight.shape[-1] // 2, groups=weight.shape[0]
    )


def _is_slow_for(features: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and features.device.type == "cpu"
        and torch.is_grad_enabled()
        and weight.requires_grad
        and not torch.is_autocast_enabled("cpu")
        and min(features.shape[2:]) < weight.shape[-1]
    )


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(features, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        features, weight = ctx.saved_tensors
        before = None
        if ctx.needs_input_grad[0]:
            before = nn.grad.conv2d_input(
                features.shape, weight, gradient, ctx.stride, ctx.padding, groups=len(weight)
            )
        found = weight_gradient(features, gradient, weight.shape[-1], ctx.stride)
        return before, found, None, None


def weight_gradient(features: Tensor, gradient: Tensor, kernel: int, stride: int) -> Tensor:
    """Return the gradient (C, 1, kernel, kernel) of a depthwise convolution's weights.

    `features` (N, C, H, W) are the input, padded by half the kernel; `gradient` is that of the
    output. The gradient of one weight is a sum over the pixels that it was multiplied by: few
    on a small map, and none if it lies outside the map at every position.
    """
    found = features.new_zeros(kernel, kernel, features.shape[1])
    # a pixel's channels lie together in channels_last
    before, after = features.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    for row in range(kernel):
        rows = _meeting(row - kernel // 2, stride, features.shape[2], gradient.shape[2])
        for column in range(kernel):
            columns = _meeting(column - kernel // 2, stride, features.shape[3], gradient.shape[3])
            if rows and columns:
                products = before[:, rows[0], columns[0]] * after[:, rows[1], columns[1]]
                torch.sum(products, (0, 1, 2), out=found[row, column])
    return found.permute(2, 0, 1)[:, None].contiguous()


def _meeting(offset: int, stride: int, size: int, out_size: int) -> tuple[slice, slice] | None:
    """Return the inputs that a kernel element is multiplied by, and the outputs they add to."""
    first = max(0, -(offset // stride))
    last = min(out_size - 1, (size - 1 - offset) // stride)
    if first > last:
        return None
    start = first * stride + offset
    return slice(start, last * stride + offset + 1, stride), slice(first, last + 1)
