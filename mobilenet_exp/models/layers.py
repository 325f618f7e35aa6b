"""The blocks of MobileNet V1 to V3, channel rounding and initialisation.

Knows no table, no config and no registry. Widths arrive here already scaled.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hswish": nn.Hardswish,
}

# Builds a normalisation layer for a number of channels; carries eps and momentum.
Norm = Callable[[int], nn.Module]


def round8(channels: float) -> int:
    """Round to the nearest multiple of 8, at least 8, never more than 10 % below.

    Source: `_make_divisible` of the authors' slim code for V2 and V3.
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def truncate(channels: float) -> int:
    """Cut to an integer, at least 8: the authors' slim rule for V1 (no divisor)."""
    return max(8, int(channels))


class ConvBNAct(nn.Module):
    """Convolution without bias, normalisation, activation; `act=None` is linear."""

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
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.bn = norm(out_channels)
        self.act = ACTIVATIONS[act](inplace=True) if act else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(images)))


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the global mean.

    The squeeze is a quarter of the *expanded* channels, rounded to 8; the gate is the
    hard sigmoid relu6(x + 3) / 6 (V3 paper, section 5.3; slim `squeeze_excite`).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = round8(channels / 4)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        scale = features.mean((2, 3), keepdim=True)
        scale = self.act(self.reduce(scale))
        return features * self.gate(self.expand(scale))


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

    No expansion convolution where `expanded == in_channels`; the shortcut joins blocks
    of stride 1 that keep their channels.
    """

    def __init__(
        self,
        in_channels: int,
        expanded: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int,
        use_se: bool,
        act: str,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.expand = (
            ConvBNAct(in_channels, expanded, 1, act=act, norm=norm)
            if expanded != in_channels
            else nn.Identity()
        )
        self.depthwise = ConvBNAct(
            expanded, expanded, kernel, stride=stride, groups=expanded, act=act, norm=norm
        )
        self.se = SqueezeExcite(expanded) if use_se else nn.Identity()
        self.project = ConvBNAct(expanded, out_channels, 1, act=None, norm=norm)

    def forward(self, features: Tensor) -> Tensor:
        out = self.expand(features)
        out = self.depthwise(out)
        out = self.se(out)
        out = self.project(out)
        return features + out if self.has_shortcut else out


@torch.no_grad()
def init_weights(model: nn.Module) -> None:
    """Draw the initial weights: convolutions He-normal by fan-out, linear N(0, 0.01).

    Source: torchvision's and the PyTorch ports' common choice; the papers' slim code
    draws every weight from a truncated normal of sd 0.09 (V1, V2) or 0.008 (V3).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
