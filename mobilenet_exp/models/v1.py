"""MobileNet V1: arXiv:1704.04861v1, Table 1; reference code: slim nets/mobilenet_v1.py.

Every layer follows `width_mult`, the stem and the last 1024 included, and is cut to an
integer with no divisor. The table prints stride 2 for the last block, but its sizes
(7 to 7) and all code say 1. BN 0.001 / decay 0.9997 and dropout keep 0.999 are slim's.
Two networks of the paper's ablations are here, too: full convolutions (Table 4), shallow
(Table 5).
"""

from functools import partial
from typing import NamedTuple

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.models.block_specs import Conv, Separable
from mobilenet_exp.models.layers import ACTIVATIONS, truncate
from mobilenet_exp.models.network import MODELS, Design, MobileNet, WidthRule


class V1Stage(NamedTuple):
    """`n` depthwise separable blocks; `s` is the stride of the first."""

    out: int
    n: int
    s: int


TABLE = (
    #    out  n  s
    V1Stage(  64, 1, 1),
    V1Stage( 128, 1, 2),
    V1Stage( 128, 1, 1),
    V1Stage( 256, 1, 2),
    V1Stage( 256, 1, 1),
    V1Stage( 512, 1, 2),
    V1Stage( 512, 5, 1),
    V1Stage(1024, 1, 2),
    V1Stage(1024, 1, 1),
)  # fmt: skip

# Table 5: "the 5 layers of separable filters with feature size 14 x 14 x 512 are removed"
SHALLOW = tuple(row for row in TABLE if row.n == 1)

# name: table, and what stands for a row: a pair of convolutions, or one full 3x3 (Table 4)
NETS = {
    "v1": (TABLE, Separable),
    "v1_full_conv": (TABLE, Conv),
    "v1_shallow": (SHALLOW, Separable),
}


def _build(name: str, *, activation: str | None = None, **options) -> MobileNet:
    """Build a V1. `activation`: `relu`, the default, as in the paper, or `relu6` as in slim
    and timm."""
    activation = activation or "relu"
    if activation not in ACTIVATIONS:
        problem = f"not known; allowed: {', '.join(ACTIVATIONS)}"
        raise InputError("model.args.activation", activation, problem)
    table, block = NETS[name]
    design = Design(
        stem=32,
        rows=tuple(
            block(out=row.out, stride=row.s if i == 0 else 1, act=activation)
            for row in table
            for i in range(row.n)
        ),
        act=activation,
        last_conv=None,
        hidden=None,
        dropout=0.001,
        bn_eps=0.001,
        bn_momentum=0.0003,
        width_rule=WidthRule(round_channels=truncate),
        exists_with_other_act=True,
    )
    return MobileNet(design, **options)


for _name in NETS:
    MODELS.register(_name)(partial(_build, _name))
