"""MobileNet V4: arXiv:2404.10518v2, Tables 10 to 14; reference code: TF model garden
backbones/mobilenet.py (commit 001ec92) and timm, which agree row by row.

The paper's Table 13 orders Hybrid-Medium's FFN rows otherwise; here it is as in both
codes. Stem and blocks' channels follow `width_mult` (the stem above 1.0 only), the head
of 1280 never does (timm). BN and dropout are the garden's; the hybrids', which it does
not give, are taken from Conv-Medium and Conv-Large.
"""

from dataclasses import replace
from functools import partial

from mobilenet_exp.models.block_specs import (
    Attention,
    BlockSpec,
    ConvPair,
    FusedBottleneck,
    Universal,
)
from mobilenet_exp.models.network import MODELS, Design, MobileNet, WidthRule


def FusedIB(s: int, out: int, x: int) -> BlockSpec:
    return FusedBottleneck(ratio=x, stride=s, out=out)


def ExtraDW(k1: int, k2: int, s: int, out: int, x: int) -> BlockSpec:
    return Universal(start_kernel=k1, kernel=k2, stride=s, out=out, ratio=x)


def IB(k2: int, out: int, x: int) -> BlockSpec:
    return ExtraDW(0, k2, 1, out, x)


def ConvNext(k1: int, out: int, x: int) -> BlockSpec:
    return ExtraDW(k1, 0, 1, out, x)


def FFN(out: int, x: int) -> BlockSpec:
    return ExtraDW(0, 0, 1, out, x)


def MQA(heads: int, dim: int, kv: int, out: int) -> BlockSpec:
    return Attention(heads=heads, head_dim=dim, kv_stride=kv, out=out)


# One row a line: kernels of the two depthwise convolutions, stride, output channels,
# expansion. What a block does not have stays blank; its stride is then 1.
CONV_SMALL = (
    #       k1 k2  s  out  x
    ConvPair(middle=32, stride=2, out=32),
    ConvPair(middle=96, stride=2, out=64),
    ExtraDW( 5, 5, 2,  96, 3),
    IB(         3,     96, 2),
    IB(         3,     96, 2),
    IB(         3,     96, 2),
    IB(         3,     96, 2),
    ConvNext(3,        96, 4),
    ExtraDW( 3, 3, 2, 128, 6),
    ExtraDW( 5, 5, 1, 128, 4),
    IB(         5,    128, 4),
    IB(         5,    128, 3),
    IB(         3,    128, 4),
    IB(         3,    128, 4),
)  # fmt: skip

CONV_MEDIUM = (
    #       k1 k2  s  out  x
    FusedIB(       2,  48, 4),
    ExtraDW( 3, 5, 2,  80, 4),
    ExtraDW( 3, 3, 1,  80, 2),
    ExtraDW( 3, 5, 2, 160, 6),
    ExtraDW( 3, 3, 1, 160, 4),
    ExtraDW( 3, 3, 1, 160, 4),
    ExtraDW( 3, 5, 1, 160, 4),
    ExtraDW( 3, 3, 1, 160, 4),
    ConvNext(3,       160, 4),
    FFN(              160, 2),
    ConvNext(3,       160, 4),
    ExtraDW( 5, 5, 2, 256, 6),
    ExtraDW( 5, 5, 1, 256, 4),
    ExtraDW( 3, 5, 1, 256, 4),
    ExtraDW( 3, 5, 1, 256, 4),
    FFN(              256, 4),
    ConvNext(3,       256, 4),
    ExtraDW( 3, 5, 1, 256, 2),
    ExtraDW( 5, 5, 1, 256, 4),
    FFN(              256, 4),
    FFN(              256, 4),
    ConvNext(5,       256, 2),
)  # fmt: skip

CONV_LARGE = (
    #       k1 k2  s  out  x
    FusedIB(       2,  48, 4),
    ExtraDW( 3, 5, 2,  96, 4),
    ExtraDW( 3, 3, 1,  96, 4),
    ExtraDW( 3, 5, 2, 192, 4),
    ExtraDW( 3, 3, 1, 192, 4),
    ExtraDW( 3, 3, 1, 192, 4),
    ExtraDW( 3, 3, 1, 192, 4),
    ExtraDW( 3, 5, 1, 192, 4),
    ExtraDW( 5, 3, 1, 192, 4),
    ExtraDW( 5, 3, 1, 192, 4),
    ExtraDW( 5, 3, 1, 192, 4),
    ExtraDW( 5, 3, 1, 192, 4),
    ExtraDW( 5, 3, 1, 192, 4),
    ConvNext(3,       192, 4),
    ExtraDW( 5, 5, 2, 512, 4),
    ExtraDW( 5, 5, 1, 512, 4),
    ExtraDW( 5, 5, 1, 512, 4),
    ExtraDW( 5, 5, 1, 512, 4),
    ConvNext(5,       512, 4),
    ExtraDW( 5, 3, 1, 512, 4),
    ConvNext(5,       512, 4),
    ConvNext(5,       512, 4),
    ExtraDW( 5, 3, 1, 512, 4),
    ExtraDW( 5, 5, 1, 512, 4),
    ConvNext(5,       512, 4),
    ConvNext(5,       512, 4),
    ConvNext(5,       512, 4),
)  # fmt: skip

HYBRID_MEDIUM = (
    #       k1 k2  s  out  x    MQA: heads, dim, kv stride, out
    FusedIB(       2,  48, 4),
    ExtraDW( 3, 5, 2,  80, 4),
    ExtraDW( 3, 3, 1,  80, 2),
    ExtraDW( 3, 5, 2, 160, 6),
    FFN(              160, 2),
    ExtraDW( 3, 3, 1, 160, 4),
    ExtraDW( 3, 5, 1, 160, 4),
    MQA(4, 64, 2,   160),
    ExtraDW( 3, 3, 1, 160, 4),
    MQA(4, 64, 2,   160),
    ConvNext(3,       160, 4),
    MQA(4, 64, 2,   160),
    ExtraDW( 3, 3, 1, 160, 4),
    MQA(4, 64, 2,   160),
    ConvNext(3,       160, 4),
    ExtraDW( 5, 5, 2, 256, 6),
    ExtraDW( 5, 5, 1, 256, 4),
    ExtraDW( 3, 5, 1, 256, 4),
    ExtraDW( 3, 5, 1, 256, 4),
    FFN(              256, 2),
    ExtraDW( 3, 5, 1, 256, 2),
    FFN(              256, 2),
    FFN(              256, 4),
    MQA(4, 64, 1,   256),
    ConvNext(3,       256, 4),
    MQA(4, 64, 1,   256),
    ExtraDW( 5, 5, 1, 256, 4),
    MQA(4, 64, 1,   256),
    ConvNext(5,       256, 4),
    MQA(4, 64, 1,   256),
    ConvNext(5,       256, 4),
)  # fmt: skip

HYBRID_LARGE = (
    #       k1 k2  s  out  x    MQA: heads, dim, kv stride, out
    FusedIB(       2,  48, 4),
    ExtraDW( 3, 5, 2,  96, 4),
    ExtraDW( 3, 3, 1,  96, 4),
    ExtraDW( 3, 5, 2, 192, 4),
    ExtraDW( 3, 3, 1, 192, 4),
    ExtraDW( 3, 3, 1, 192, 4),
    ExtraDW( 3, 3, 1, 192, 4),
    ExtraDW( 3, 5, 1, 192, 4),
    ExtraDW( 5, 3, 1, 192, 4),
    ExtraDW( 5, 3, 1, 192, 4),
    MQA(8, 48, 2,   192),
    ExtraDW( 5, 3, 1, 192, 4),
    MQA(8, 48, 2,   192),
    ExtraDW( 5, 3, 1, 192, 4),
    MQA(8, 48, 2,   192),
    ExtraDW( 5, 3, 1, 192, 4),
    MQA(8, 48, 2,   192),
    ConvNext(3,       192, 4),
    ExtraDW( 5, 5, 2, 512, 4),
    ExtraDW( 5, 5, 1, 512, 4),
    ExtraDW( 5, 5, 1, 512, 4),
    ExtraDW( 5, 5, 1, 512, 4),
    ConvNext(5,       512, 4),
    ExtraDW( 5, 3, 1, 512, 4),
    ConvNext(5,       512, 4),
    ConvNext(5,       512, 4),
    ExtraDW( 5, 3, 1, 512, 4),
    ExtraDW( 5, 5, 1, 512, 4),
    MQA(8, 64, 1,   512),
    ConvNext(5,       512, 4),
    MQA(8, 64, 1,   512),
    ConvNext(5,       512, 4),
    MQA(8, 64, 1,   512),
    ConvNext(5,       512, 4),
    MQA(8, 64, 1,   512),
    ConvNext(5,       512, 4),
)  # fmt: skip


def _design(
    table: tuple[BlockSpec, ...],
    *,
    stem: int,
    dropout: float,
    bn_eps: float = 0.001,
    bn_momentum: float = 0.003,
    act: str = "relu",
    layer_scale: bool = False,
) -> Design:
    rows = (replace(row, act=act) for row in table)
    return Design(
        stem=stem,
        rows=tuple(
            replace(row, layer_scale=layer_scale) if isinstance(row, Universal) else row
            for row in rows
        ),
        act=act,
        last_conv=960,
        hidden=1280,
        hidden_kind="conv_bn",
        dropout=dropout,
        bn_eps=bn_eps,
        bn_momentum=bn_momentum,
        width_rule=WidthRule(stem="grows", hidden="fixed"),
    )


DESIGNS = {
    "v4_conv_small": _design(CONV_SMALL, stem=32, dropout=0.3, bn_eps=1e-6, bn_momentum=0.05),
    "v4_conv_medium": _design(CONV_MEDIUM, stem=32, dropout=0.2),
    "v4_conv_large": _design(CONV_LARGE, stem=24, dropout=0.2),
    "v4_hybrid_medium": _design(HYBRID_MEDIUM, stem=32, dropout=0.2, layer_scale=True),
    "v4_hybrid_large": _design(HYBRID_LARGE, stem=24, dropout=0.2, act="gelu", layer_scale=True),
}


def _build(name: str, **options) -> MobileNet:
    """Build V4."""
    return MobileNet(DESIGNS[name], **options)


for _name in DESIGNS:
    MODELS.register(_name)(partial(_build, _name))
