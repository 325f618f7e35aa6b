"""MobileNet V3: arXiv:1905.02244v5, Tables 1 and 2; reference code: slim mobilenet_v3.py.

The tables changed between versions of the paper; these are the final ones. Table 2
ticks squeeze-excite on the last 576 convolution, but no code has it and the printed
2.5 M parameters exclude it. The last convolution follows `width_mult`, the 1280 / 1024
head after the pooling does not below 1.0. BN eps 0.001 is slim's, momentum 0.01 the
paper's "average decay 0.99", dropout 0.2 its "dropout of 0.8" (kept).
"""

from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import NamedTuple

from mobilenet_exp.errors import InputError
from mobilenet_exp.models.network import Bottleneck, Design, MobileNet
from mobilenet_exp.registry import MODELS

RE, HS = "relu", "hswish"
STEM = 16


class Row(NamedTuple):
    """Kernel, expanded and output channels, squeeze-excite, non-linearity, stride."""

    k: int
    exp: int
    out: int
    se: bool
    nl: str
    s: int


LARGE = (
    #   k  exp  out     SE  NL  s
    Row(3,  16,  16, False, RE, 1),
    Row(3,  64,  24, False, RE, 2),
    Row(3,  72,  24, False, RE, 1),
    Row(5,  72,  40, True,  RE, 2),
    Row(5, 120,  40, True,  RE, 1),
    Row(5, 120,  40, True,  RE, 1),
    Row(3, 240,  80, False, HS, 2),
    Row(3, 200,  80, False, HS, 1),
    Row(3, 184,  80, False, HS, 1),
    Row(3, 184,  80, False, HS, 1),
    Row(3, 480, 112, True,  HS, 1),
    Row(3, 672, 112, True,  HS, 1),
    Row(5, 672, 160, True,  HS, 2),
    Row(5, 960, 160, True,  HS, 1),
    Row(5, 960, 160, True,  HS, 1),
)  # fmt: skip

SMALL = (
    #   k  exp  out     SE  NL  s
    Row(3,  16,  16, True,  RE, 2),
    Row(3,  72,  24, False, RE, 2),
    Row(3,  88,  24, False, RE, 1),
    Row(5,  96,  40, True,  HS, 2),
    Row(5, 240,  40, True,  HS, 1),
    Row(5, 240,  40, True,  HS, 1),
    Row(5, 120,  48, True,  HS, 1),
    Row(5, 144,  48, True,  HS, 1),
    Row(5, 288,  96, True,  HS, 2),
    Row(5, 576,  96, True,  HS, 1),
    Row(5, 576,  96, True,  HS, 1),
)  # fmt: skip


def _minimalistic(table: tuple[Row, ...]) -> tuple[Row, ...]:
    """The same columns with 3x3 kernels, no squeeze-excite and ReLU only (slim)."""
    return tuple(row._replace(k=3, se=False, nl=RE) for row in table)


def _design(table: tuple[Row, ...], *, last_conv: int, hidden: int, act: str = HS) -> Design:
    in_channels = (STEM, *(row.out for row in table))
    rows = tuple(
        Bottleneck(Fraction(row.exp, channels), row.out, row.s, row.nl, row.k, row.se)
        for row, channels in zip(table, in_channels, strict=False)
    )
    return Design(
        stem=STEM,
        rows=rows,
        act=act,
        last_conv=last_conv,
        shrink_last_conv=True,
        hidden=hidden,
        dropout=0.2,
        bn_eps=0.001,
        bn_momentum=0.01,
    )


DESIGNS = {
    "v3_large": _design(LARGE, last_conv=960, hidden=1280),
    "v3_small": _design(SMALL, last_conv=576, hidden=1024),
    "v3_large_minimalistic": _design(_minimalistic(LARGE), last_conv=960, hidden=1280, act=RE),
    "v3_small_minimalistic": _design(_minimalistic(SMALL), last_conv=576, hidden=1024, act=RE),
}


def _build(
    name: str, *, head_width: int | None = None, scale_stem: bool = True, **options
) -> MobileNet:
    """Build a V3. `head_width` replaces the 1280 or 1024 after the pooling (1280 gives
    the Small net of the paper's early versions); `scale_stem=False` keeps the stem at
    16 channels at every width, as timm does below 0.75."""
    if head_width is not None and head_width < 1:
        raise InputError("model.args.head_width", head_width, "must be a whole number > 0")
    design = replace(DESIGNS[name], scale_stem=scale_stem)
    if head_width is not None:
        design = replace(design, hidden=head_width)
    return MobileNet(design, **options)


for _name in DESIGNS:
    MODELS.register(_name)(partial(_build, _name))
