"""The layers and blocks of MobileNet V1 to V3, and channel rounding. V4's are in `layers_v4`.

Widths arrive here already scaled. Activations come without needless copies of feature maps:
torch's own in-place ones first copy their input where the gradient is computed from it.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Builds a normalisation layer for a number of channels; carries eps and momentum.
Norm = Callable[[int], nn.Module]


def round_to(channels: float | Fraction, divisor: int = 8) -> int:
    """Round to the nearest multiple of `divisor`, at least one, never more than 10 % below.

    Source: `_make_divisible` of the authors' slim code for V2 and V3, where it is 8.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def truncate(channels: float) -> int:
    """Cut to an integer, at least 8: the authors' slim rule for V1 (no divisor)."""
    return max(8, int(channels))


def round_up(channels: float) -> int:
    """Round up to a multiple of 8: tonylins' V2 and kuan-wang's V3."""
    return int(-(-channels // 8)) * 8


class ReLU6(nn.ReLU6):
    """`nn.ReLU6` in place; its gradient is computed from the output: zero where that is 0 or 6."""

    def forward(self, features: Tensor) -> Tensor:
        return relu6_(features)


class Hardswish(nn.Hardswish):
    """`nn.Hardswish`, in place only where no gradient is computed: the gradient needs the input."""

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


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` with as many groups as channels, the same results, and no bias.

    Its weight gradient is fast on maps smaller than the kernel. On a CPU, oneDNN has no fast one
    for such maps: for 576 channels of 1x1 pixels and a 5x5 kernel, batch 128, it takes 45 ms,
    `weight_gradient` at most 0.1 ms (`benchmarks/step.py`).
    """

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__(
            channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False
        )

    def forward(self, features: Tensor) -> Tensor:
        return depthwise_conv(features, self.weight, self.stride[0])


@torch.fx.wrap
def depthwise_conv(features: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Convolve each channel (N, C, H, W) with its own kernel, padded by half of it."""
    is_slow_for_torch = (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and features.device.type == "cpu"
        and torch.is_grad_enabled()
        and weight.requires_grad
        and not torch.is_autocast_enabled("cpu")
        and min(features.shape[2:]) < weight.shape[-1]
    )
    if is_slow_for_torch:
        return _Depthwise.apply(features, weight, stride)
    return torch.conv2d(features, weight, None, stride, weight.shape[-1] // 2, groups=len(weight))


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.stride, ctx.padding = stride, weight.shape[-1] // 2
        return torch.conv2d(features, weight, None, stride, ctx.padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        features, weight = ctx.saved_tensors
        before = None
        if ctx.needs_input_grad[0]:
            before = nn.grad.conv2d_input(
                features.shape, weight, gradient, ctx.stride, ctx.padding, groups=len(weight)
            )
        found = weight_gradient(features, gradient, weight.shape[-1], ctx.stride)
        return before, found, None


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


class ConvBNAct(nn.Module):
    """Convolution without bias, normalisation, activation; `act=None` is linear.

    Padding is symmetric. With `tf_same` it is TensorFlow's SAME, which puts the odd
    pixel of a stride of 2 at the end: same sizes, a grid shifted by one pixel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        norm: Norm,
        act: str | None,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        if groups == in_channels == out_channels:
            self.conv: nn.Conv2d = DepthwiseConv2d(in_channels, kernel, stride)
        else:
            self.conv = nn.Conv2d(
                in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
            )
        self.bn = norm(out_channels)
        self.act = ACTIVATIONS[act]() if act else nn.Identity()
        self.tf_same = False

    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.before_act(images))

    def before_act(self, images: Tensor) -> Tensor:
        if self.tf_same and self.conv.stride[0] > 1:
            images = _pad_like_tf(images, self.conv)
            return self.bn(
                nn.functional.conv2d(
                    images,
                    self.conv.weight,
                    self.conv.bias,
                    self.conv.stride,
                    groups=self.conv.groups,
                )
            )
        return self.bn(self.conv(images))


def _pad_like_tf(images: Tensor, conv: nn.Conv2d) -> Tensor:
    """Pad height and width as SAME does: as little as needed, the odd pixel at the end."""
    pads = []
    for side, kernel, stride in zip(
        reversed(images.shape[2:]), conv.kernel_size, conv.stride, strict=True
    ):
        total = max(0, (-(-side // stride) - 1) * stride + kernel - side)
        pads += [total // 2, total - total // 2]
    return nn.functional.pad(images, pads)


@torch.fx.wrap
def global_mean(features: Tensor) -> Tensor:
    """Return the means (N, C, 1, 1) over height and width.

    In training on a CPU they are computed as sums, then divided: the gradient of a mean would be
    written out for every pixel, and in NCHW, which slows the rest of the backward pass.
    """
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if not is_traced and features.device.type == "cpu" and torch.is_grad_enabled():
        pixels = features.shape[2] * features.shape[3]
        return features.sum((2, 3), keepdim=True) / pixels
    return features.mean((2, 3), keepdim=True)


@torch.fx.wrap
def gated(features: Tensor, gate: Tensor) -> Tensor:
    """Return features * gate, written into `features` where no gradient is needed.

    A hook that keeps a feature map from inside a block must then clone it.
    """
    return features.mul_(gate) if _may_change(features, gate) else features * gate


@torch.fx.wrap
def add_shortcut(features: Tensor, branch: Tensor) -> Tensor:
    """Return features + branch, written into `branch` where no gradient is needed, as `gated`."""
    return branch.add_(features) if _may_change(branch, features) else features + branch


def _may_change(features: Tensor, other: Tensor) -> bool:
    if needs_grad(features) or needs_grad(other) or torch.jit.is_tracing():
        return False
    # a tensor that `FakeQuantized` has marked would count as quantised after the change, too
    return features.dtype is other.dtype and not getattr(features, "is_int8", False)


class GlobalPool(nn.Module):
    """`nn.AdaptiveAvgPool2d(1)`."""

    def forward(self, features: Tensor) -> Tensor:
        return global_mean(features)


class HiddenLinear(nn.Linear):
    """A linear layer on pooled features (N, C, 1, 1)."""

    def forward(self, pooled: Tensor) -> Tensor:
        return super().forward(pooled.flatten(1))


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the global mean.

    The squeeze is a quarter of the *expanded* channels, rounded to 8; the gate is the
    hard sigmoid relu6(x + 3) / 6 (V3 paper, section 5.3; slim `squeeze_excite`).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = round_to(channels / 4)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        scale = global_mean(features)
        scale = self.act(self.reduce(scale))
        return gated(features, self.gate(self.expand(scale)))


class LinearSqueezeExcite(SqueezeExcite):
    """Squeeze-excite by linear layers without bias; the squeeze is not rounded (kuan-wang's V3)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.reduce = nn.Linear(channels, channels // 4, bias=False)
        self.expand = nn.Linear(channels // 4, channels, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        scale = self.act(self.reduce(global_mean(features).flatten(1)))
        return gated(features, self.gate(self.expand(scale))[..., None, None])


class DepthwiseSeparable(nn.Module):
    """Depthwise 3x3, then pointwise 1x1, both with activation and no shortcut (V1)."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, act: str, norm: Norm
    ) -> None:
        super().__init__()
        self.depthwise = ConvBNAct(
            in_channels, in_channels, 3, stride=stride, groups=in_channels, act=act, norm=norm
        )
        self.pointwise = ConvBNAct(in_channels, out_channels, 1, act=act, norm=norm)

    def forward(self, features: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(features))


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, squeeze-excite, project 1x1 linear (V2, V3).

    `expanded=None`: no expansion convolution. `se` gates the activated features, or
    with `se_before_act` those before the depthwise activation. Blocks of
    stride 1 that keep their channels have a shortcut, unless `wants_shortcut=False`.
    """

    def __init__(
        self,
        in_channels: int,
        expanded: int | None,
        out_channels: int,
        *,
        kernel: int,
        stride: int,
        act: str,
        norm: Norm,
        se: Callable[[int], nn.Module] | None = None,
        se_before_act: bool = False,
        wants_shortcut: bool = True,
    ) -> None:
        super().__init__()
        self.has_shortcut = wants_shortcut and stride == 1 and in_channels == out_channels
        self.drop_branch: nn.Module = nn.Identity()
        self.se_before_act = se_before_act
        self.expand = (
            ConvBNAct(in_channels, expanded, 1, act=act, norm=norm) if expanded else nn.Identity()
        )
        expanded = expanded or in_channels
        self.depthwise = ConvBNAct(
            expanded, expanded, kernel, stride=stride, groups=expanded, act=act, norm=norm
        )
        self.se = se(expanded) if se else nn.Identity()
        self.project = ConvBNAct(expanded, out_channels, 1, act=None, norm=norm)

    def forward(self, features: Tensor) -> Tensor:
        out = self.expand(features)
        if self.se_before_act:
            out = self.depthwise.act(self.se(self.depthwise.before_act(out)))
        else:
            out = self.se(self.depthwise(out))
        out = self.project(out)
        return add_shortcut(features, self.drop_branch(out)) if self.has_shortcut else out


class FusedResidual(nn.Module):
    """Expand by a full 3x3 convolution, project 1x1 (V3 EdgeTPU, V4's first stages).

    `project_act=None`: linear. The shortcut is `InvertedResidual`'s.
    """

    def __init__(
        self,
        in_channels: int,
        expanded: int,
        out_channels: int,
        *,
        stride: int,
        act: str,
        norm: Norm,
        project_act: str | None = None,
    ) -> None:
        super().__init__()
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.drop_branch: nn.Module = nn.Identity()
        self.expand = ConvBNAct(in_channels, expanded, 3, stride=stride, act=act, norm=norm)
        self.project = ConvBNAct(expanded, out_channels, 1, act=project_act, norm=norm)

    def forward(self, features: Tensor) -> Tensor:
        out = self.project(self.expand(features))
        return add_shortcut(features, self.drop_branch(out)) if self.has_shortcut else out
