"""MobileNet V3 EdgeTPU: slim mobilenet_v3.py, `V3_EDGETPU`; in the papers' README only.

V3's relative for accelerators: ReLU, no squeeze-excite, full 3x3 expansions in the first
stages. `width_mult` scales every layer, but the last 1280 only above 1.0. BN eps 0.001
and momentum 0.01 as V3; dropout 0.2.
"""

from fractions import Fraction

from mobilenet_exp.models.block_specs import BlockSpec, Bottleneck, Conv, FusedBottleneck
from mobilenet_exp.models.network import MODELS, Design, MobileNet, WidthRule


def fused(x: int, s: int, out: int) -> BlockSpec:
    return FusedBottleneck(ratio=x, stride=s, out=out)


def ib(x: int, k: int, s: int, out: int, *, wants_shortcut: bool = True) -> BlockSpec:
    return Bottleneck(ratio=Fraction(x), kernel=k, stride=s, out=out, wants_shortcut=wants_shortcut)


ROWS = (
    Conv(kernel=1, out=16),
    # x  s  out
    fused(8, 2, 32), *3 * [fused(4, 1, 32)],
    fused(8, 2, 48), *3 * [fused(4, 1, 48)],
    # x  k  s  out
    ib(8, 3, 2,  96), *3 * [ib(4, 3, 1,  96)],
    ib(8, 3, 1,  96, wants_shortcut=False), *3 * [ib(4, 3, 1,  96)],
    ib(8, 5, 2, 160), *3 * [ib(4, 5, 1, 160)],
    ib(8, 3, 1, 192),
)  # fmt: skip

DESIGN = Design(
    stem=32,
    rows=ROWS,
    act="relu",
    last_conv=1280,
    hidden=None,
    dropout=0.2,
    bn_eps=0.001,
    bn_momentum=0.01,
    width_rule=WidthRule(last_conv="grows"),
)


@MODELS.register("v3_edgetpu")
def v3_edgetpu(**options) -> MobileNet:
    """Build V3 EdgeTPU."""
    return MobileNet(DESIGN, **options)
