"""The blocks of MobileNet V1 to V3 and channel rounding. V4's are in `layers_v4`.

Widths arrive here already scaled.
"""

from collections.abc import Callable
from fractions import Fraction

import torch
import torch.fx
from torch import Tensor, nn

from mobilenet_exp.models.activations import ACTIVATIONS, needs_grad
from mobilenet_exp.models.depthwise import DepthwiseConv2d

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
def joined(features: Tensor, branch: Tensor) -> Tensor:
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
        return joined(features, self.drop_branch(out)) if self.has_shortcut else out


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
        return joined(features, self.drop_branch(out)) if self.has_shortcut else out
