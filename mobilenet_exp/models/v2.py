"""MobileNet V2: arXiv:1801.04381, Table 2; reference code: slim nets/mobilenet/mobilenet_v2.py.

All layers follow `width_mult` but the last convolution, which keeps its 1280 channels
below 1.0 (paper, section 4). BN 0.001 / decay 0.997 and dropout keep 0.8 are slim's.
"""

from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import NamedTuple

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.models.block_specs import Bottleneck
from mobilenet_exp.models.layers import round_to, round_up
from mobilenet_exp.models.network import MODELS, Design, MobileNet, WidthRule


class V2Stage(NamedTuple):
    """`n` bottlenecks of expansion `t` and `c` outputs; `s` is the stride of the first."""

    t: int
    c: int
    n: int
    s: int


TABLE = (
    #   t    c  n  s
    V2Stage(1,  16, 1, 1),
    V2Stage(6,  24, 2, 2),
    V2Stage(6,  32, 3, 2),
    V2Stage(6,  64, 4, 2),
    V2Stage(6,  96, 3, 1),
    V2Stage(6, 160, 3, 2),
    V2Stage(6, 320, 1, 1),
)  # fmt: skip

WIDTH_RULES = {
    "paper": WidthRule(last_conv="grows"),
    # d-li14's at width 0.1
    "divisor4": WidthRule(last_conv="grows", round_channels=partial(round_to, divisor=4)),
    # stem and first block keep their width, the others round up
    "tonylins": WidthRule(stem="fixed", last_conv="grows", round_channels=round_up),
}

DESIGN = Design(
    stem=32,
    rows=tuple(
        Bottleneck(
            ratio=Fraction(row.t), out=row.c, stride=row.s if i == 0 else 1, act="relu6"
        )
        for row in TABLE
        for i in range(row.n)
    ),
    act="relu6",
    last_conv=1280,
    hidden=None,
    dropout=0.2,
    bn_eps=0.001,
    bn_momentum=0.003,
)  # fmt: skip


@MODELS.register("v2")
def v2(*, width_rule: str = "paper", **options) -> MobileNet:
    """Build V2. `width_rule`: `paper`, or what other code does at widths other than 1.0:
    `divisor4` (d-li14's 0.1), `tonylins`."""
    if width_rule not in WIDTH_RULES:
        problem = f"not known; allowed: {', '.join(WIDTH_RULES)}"
        raise InputError("model.args.width_rule", width_rule, problem)
    design = replace(DESIGN, width_rule=WIDTH_RULES[width_rule])
    if width_rule == "tonylins":
        first, *others = design.rows
        design = replace(design, rows=(replace(first, fixed=True), *others))
    return MobileNet(design, **options)
