"""Block specifications: one row of a paper's table at width 1.0, and how to build it.

A `Bottleneck` with a `ratio` multiplies its input channels *after* they were rounded, as in
the authors' code. One with `expanded` channels scales these by `width_mult` on their own, as
in some ports; at widths other than 1.0 this gives another network.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from torch import nn

from mobilenet_exp.models.layers import (
    ConvBNAct,
    DepthwiseSeparable,
    FusedResidual,
    InvertedResidual,
    LinearSqueezeExcite,
    Norm,
    SqueezeExcite,
    round_to,
)
from mobilenet_exp.models.layers_v4 import MultiQueryAttention, UniversalBottleneck

# scales channels of the table by width_mult and rounds them
Scaled = Callable[[float], int]


@dataclass(frozen=True, kw_only=True)
class BlockSpec(ABC):
    """`out` channels at width 1.0 and the stride; `fixed` rows ignore `width_mult`."""

    out: int
    stride: int = 1
    act: str = "relu"
    fixed: bool = False

    @abstractmethod
    def build(self, in_channels: int, out_channels: int, scaled: Scaled, norm: Norm) -> nn.Module:
        """Build the block between channels that are scaled already."""


@dataclass(frozen=True, kw_only=True)
class Conv(BlockSpec):
    """One full convolution (V1's ablation, EdgeTPU's first row)."""

    kernel: int = 3

    def build(self, in_channels: int, out_channels: int, scaled: Scaled, norm: Norm) -> nn.Module:
        return ConvBNAct(
            in_channels, out_channels, self.kernel, stride=self.stride, act=self.act, norm=norm
        )


@dataclass(frozen=True, kw_only=True)
class Separable(BlockSpec):
    """A depthwise separable convolution (V1)."""

    def build(self, in_channels: int, out_channels: int, scaled: Scaled, norm: Norm) -> nn.Module:
        return DepthwiseSeparable(
            in_channels, out_channels, stride=self.stride, act=self.act, norm=norm
        )


@dataclass(frozen=True, kw_only=True)
class Bottleneck(BlockSpec):
    """An inverted residual with linear bottleneck (V2, V3).

    The expansion is given as an exact `ratio` or as `expanded` channels. One that keeps the
    number of channels has no convolution, unless `always_expands`. `se` is none, conv
    (the papers') or linear (kuan-wang's, before the activation).
    """

    ratio: Fraction | None = None
    expanded: int | None = None
    kernel: int = 3
    se: str = "none"
    always_expands: bool = False
    wants_shortcut: bool = True

    def build(self, in_channels: int, out_channels: int, scaled: Scaled, norm: Norm) -> nn.Module:
        expanded = in_channels if self.ratio == 1 else round_to((self.ratio or 0) * in_channels)
        if self.expanded:
            expanded = scaled(self.expanded)
        expands = self.always_expands or expanded != in_channels
        return InvertedResidual(
            in_channels,
            expanded if expands else None,
            out_channels,
            kernel=self.kernel,
            stride=self.stride,
            act=self.act,
            norm=norm,
            se={"none": None, "conv": SqueezeExcite, "linear": LinearSqueezeExcite}[self.se],
            se_before_act=self.se == "linear",
            wants_shortcut=self.wants_shortcut,
        )


@dataclass(frozen=True, kw_only=True)
class FusedBottleneck(BlockSpec):
    """A fused inverted residual: full 3x3 expansion, linear 1x1 (EdgeTPU, V4)."""

    ratio: int

    def build(self, in_channels: int, out_channels: int, scaled: Scaled, norm: Norm) -> nn.Module:
        return FusedResidual(
            in_channels,
            round_to(self.ratio * in_channels),
            out_channels,
            stride=self.stride,
            act=self.act,
            norm=norm,
        )


@dataclass(frozen=True, kw_only=True)
class ConvPair(BlockSpec):
    """3x3 to `middle`, 1x1 to `out`, both with activation (V4 Conv-Small's FusedIB)."""

    middle: int

    def build(self, in_channels: int, out_channels: int, scaled: Scaled, norm: Norm) -> nn.Module:
        return FusedResidual(
            in_channels,
            scaled(self.middle),
            out_channels,
            stride=self.stride,
            act=self.act,
            project_act=self.act,
            norm=norm,
        )


@dataclass(frozen=True, kw_only=True)
class Universal(BlockSpec):
    """V4's universal inverted bottleneck; a kernel of 0 is not there."""

    start_kernel: int
    kernel: int
    ratio: int
    layer_scale: bool = False

    def build(self, in_channels: int, out_channels: int, scaled: Scaled, norm: Norm) -> nn.Module:
        return UniversalBottleneck(
            in_channels,
            round_to(self.ratio * in_channels),
            out_channels,
            start_kernel=self.start_kernel,
            kernel=self.kernel,
            stride=self.stride,
            act=self.act,
            norm=norm,
            layer_scale=self.layer_scale,
        )


@dataclass(frozen=True, kw_only=True)
class Attention(BlockSpec):
    """V4's mobile multi-query attention; keeps its channels."""

    heads: int
    head_dim: int
    kv_stride: int

    def build(self, in_channels: int, out_channels: int, scaled: Scaled, norm: Norm) -> nn.Module:
        return MultiQueryAttention(
            in_channels,
            heads=self.heads,
            head_dim=self.head_dim,
            kv_stride=self.kv_stride,
            norm=norm,
        )
