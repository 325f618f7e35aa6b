"""Rows into a network: the one place where `width_mult` is applied.

Knows blocks and channel rounding; does not know which paper it is building.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Protocol

from torch import Tensor, nn

from mobilenet_exp.errors import InputError
from mobilenet_exp.models.layers import (
    ACTIVATIONS,
    ConvBNAct,
    DepthwiseSeparable,
    InvertedResidual,
    Norm,
    init_weights,
    round8,
)


class Row(Protocol):
    """One block of a table: `out` channels at width 1.0, and the module it stands for."""

    out: int

    def build(self, in_channels: int, out_channels: int, norm: Norm) -> nn.Module: ...


@dataclass(frozen=True)
class Separable:
    """A depthwise separable convolution (V1)."""

    out: int
    stride: int
    act: str

    def build(self, in_channels: int, out_channels: int, norm: Norm) -> nn.Module:
        return DepthwiseSeparable(
            in_channels, out_channels, stride=self.stride, act=self.act, norm=norm
        )


@dataclass(frozen=True)
class Bottleneck:
    """An inverted residual with linear bottleneck (V2, V3).

    `ratio` is the exact expansion over the block's input channels. It multiplies the
    input *as already rounded*, as in the authors' code; scaling the table's expanded
    width instead gives other nets at every width but 1.0.
    """

    ratio: Fraction
    out: int
    stride: int
    act: str
    kernel: int = 3
    use_se: bool = False

    def build(self, in_channels: int, out_channels: int, norm: Norm) -> nn.Module:
        return InvertedResidual(
            in_channels,
            round8(self.ratio * in_channels),
            out_channels,
            kernel=self.kernel,
            stride=self.stride,
            use_se=self.use_se,
            act=self.act,
            norm=norm,
        )


@dataclass(frozen=True)
class Design:
    """A whole network at width 1.0, as its paper gives it."""

    stem: int
    rows: tuple[Row, ...]
    # activation of stem and head
    act: str
    # 1x1 convolution before the pooling; None: there is none
    last_conv: int | None
    # 1x1 convolution with bias after the pooling (V3's head); None: there is none
    hidden: int | None
    # dropout probability before the classifier
    dropout: float
    bn_eps: float
    # PyTorch's sense: 1 - the papers' decay
    bn_momentum: float
    # whether last_conv follows width_mult below 1.0; the head's last layer never does
    shrink_last_conv: bool = False
    scale_stem: bool = True
    round_channels: Callable[[float], int] = round8


class MobileNet(nn.Module):
    """A MobileNet of any generation: images (N, 3, H, W) to logits (N, num_classes).

    `width_mult` > 0 is the paper's alpha. `stem_stride` is 2 in every paper; 1 keeps
    the grid of small images (32 px) from shrinking away. `dropout`, `bn_eps` and
    `bn_momentum` default to the design's. Raises InputError for a value out of range.
    """

    def __init__(
        self,
        design: Design,
        *,
        width_mult: float = 1.0,
        num_classes: int = 1000,
        dropout: float | None = None,
        stem_stride: int = 2,
        bn_eps: float | None = None,
        bn_momentum: float | None = None,
    ) -> None:
        super().__init__()
        _check(width_mult, num_classes, dropout, stem_stride, bn_eps, bn_momentum)
        norm = partial(
            nn.BatchNorm2d,
            eps=design.bn_eps if bn_eps is None else bn_eps,
            momentum=design.bn_momentum if bn_momentum is None else bn_momentum,
        )

        def scaled(channels: int, shrinks: bool = True) -> int:
            return design.round_channels(channels * (width_mult if shrinks else max(width_mult, 1)))

        channels = scaled(design.stem) if design.scale_stem else design.stem
        self.stem = ConvBNAct(3, channels, 3, stride=stem_stride, act=design.act, norm=norm)
        self.blocks = nn.Sequential()
        for row in design.rows:
            out_channels = scaled(row.out)
            self.blocks.append(row.build(channels, out_channels, norm))
            channels = out_channels

        self.last_conv: nn.Module = nn.Identity()
        if design.last_conv is not None:
            out_channels = scaled(design.last_conv, design.shrink_last_conv)
            self.last_conv = ConvBNAct(channels, out_channels, 1, act=design.act, norm=norm)
            channels = out_channels
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden: nn.Module = nn.Identity()
        self.hidden_act: nn.Module = nn.Identity()
        if design.hidden is not None:
            out_channels = scaled(design.hidden, shrinks=False)
            self.hidden = nn.Linear(channels, out_channels)
            self.hidden_act = ACTIVATIONS[design.act](inplace=True)
            channels = out_channels
        self.dropout = nn.Dropout(design.dropout if dropout is None else dropout)
        self.classifier = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        features = self.blocks(features)
        features = self.last_conv(features)
        features = self.pool(features).flatten(1)
        features = self.hidden_act(self.hidden(features))
        return self.classifier(self.dropout(features))


def _check(
    width_mult: float,
    num_classes: int,
    dropout: float | None,
    stem_stride: int,
    bn_eps: float | None,
    bn_momentum: float | None,
) -> None:
    if not 0 < width_mult < float("inf"):
        raise InputError("model.width_mult", width_mult, "must be a number > 0")
    if num_classes < 1:
        raise InputError("model.num_classes", num_classes, "must be a whole number > 0")
    if dropout is not None and not 0 <= dropout < 1:
        raise InputError("model.dropout", dropout, "must be in [0, 1)")
    if stem_stride not in (1, 2):
        raise InputError("model.stem_stride", stem_stride, "must be 1 or 2")
    if bn_eps is not None and not bn_eps > 0:
        raise InputError("model.bn_eps", bn_eps, "must be a number > 0")
    if bn_momentum is not None and not 0 < bn_momentum <= 1:
        raise InputError("model.bn_momentum", bn_momentum, "must be in (0, 1]")
