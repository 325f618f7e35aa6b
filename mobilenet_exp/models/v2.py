"""MobileNet V2: arXiv:1801.04381, Table 2; reference code: slim nets/mobilenet/mobilenet_v2.py.

All layers follow `width_mult` but the last convolution, which keeps its 1280 channels
below 1.0 (paper, section 4). BN 0.001 / decay 0.997 and dropout keep 0.8 are slim's.
"""

from fractions import Fraction
from typing import NamedTuple

from mobilenet_exp.models.network import Bottleneck, Design, MobileNet
from mobilenet_exp.registry import MODELS


class Row(NamedTuple):
    """`n` bottlenecks of expansion `t` and `c` outputs; `s` is the stride of the first."""

    t: int
    c: int
    n: int
    s: int


TABLE = (
    #   t    c  n  s
    Row(1,  16, 1, 1),
    Row(6,  24, 2, 2),
    Row(6,  32, 3, 2),
    Row(6,  64, 4, 2),
    Row(6,  96, 3, 1),
    Row(6, 160, 3, 2),
    Row(6, 320, 1, 1),
)  # fmt: skip

DESIGN = Design(
    stem=32,
    rows=tuple(
        Bottleneck(Fraction(row.t), row.c, row.s if i == 0 else 1, "relu6")
        for row in TABLE
        for i in range(row.n)
    ),
    act="relu6",
    last_conv=1280,
    hidden=None,
    dropout=0.2,
    bn_eps=0.001,
    bn_momentum=0.003,
)


@MODELS.register("v2")
def v2(**options) -> MobileNet:
    """Build V2."""
    return MobileNet(DESIGN, **options)
