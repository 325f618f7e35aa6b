"""MobileNet V3: arXiv:1905.02244v5, Tables 1 and 2; reference code: slim mobilenet_v3.py.

The tables changed between versions of the paper; these are the final ones. Table 2
ticks squeeze-excite on the last 576 convolution, but no code has it and the printed
2.5 M parameters exclude it. `width_mult` scales the last convolution, but the 1280 / 1024
head after the pooling only above 1.0. BN eps 0.001 is slim's, momentum 0.01 the
paper's "average decay 0.99", dropout 0.2 its "dropout of 0.8" (kept).
"""

from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import NamedTuple

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.models.block_specs import Bottleneck
from mobilenet_exp.models.network import MODELS, Design, MobileNet, WidthRule

RE, HS = "relu", "hswish"
STEM = 16


class V3Block(NamedTuple):
    """Kernel, expanded and output channels, squeeze-excite, non-linearity, stride."""

    k: int
    exp: int
    out: int
    se: bool
    nl: str
    s: int


LARGE = (
    #   k  exp  out     SE  NL  s
    V3Block(3,  16,  16, False, RE, 1),
    V3Block(3,  64,  24, False, RE, 2),
    V3Block(3,  72,  24, False, RE, 1),
    V3Block(5,  72,  40, True,  RE, 2),
    V3Block(5, 120,  40, True,  RE, 1),
    V3Block(5, 120,  40, True,  RE, 1),
    V3Block(3, 240,  80, False, HS, 2),
    V3Block(3, 200,  80, False, HS, 1),
    V3Block(3, 184,  80, False, HS, 1),
    V3Block(3, 184,  80, False, HS, 1),
    V3Block(3, 480, 112, True,  HS, 1),
    V3Block(3, 672, 112, True,  HS, 1),
    V3Block(5, 672, 160, True,  HS, 2),
    V3Block(5, 960, 160, True,  HS, 1),
    V3Block(5, 960, 160, True,  HS, 1),
)  # fmt: skip

SMALL = (
    #   k  exp  out     SE  NL  s
    V3Block(3,  16,  16, True,  RE, 2),
    V3Block(3,  72,  24, False, RE, 2),
    V3Block(3,  88,  24, False, RE, 1),
    V3Block(5,  96,  40, True,  HS, 2),
    V3Block(5, 240,  40, True,  HS, 1),
    V3Block(5, 240,  40, True,  HS, 1),
    V3Block(5, 120,  48, True,  HS, 1),
    V3Block(5, 144,  48, True,  HS, 1),
    V3Block(5, 288,  96, True,  HS, 2),
    V3Block(5, 576,  96, True,  HS, 1),
    V3Block(5, 576,  96, True,  HS, 1),
)  # fmt: skip


WIDTH_RULES = {
    "paper": WidthRule(),
    # timm keeps the head at every width, and below 0.75 the stem too
    "timm": WidthRule(hidden="fixed"),
    # torchvision lets the head shrink; its expanded widths are the table's, scaled
    "torchvision": WidthRule(hidden="follows", last_conv_ratio=6),
}


def _minimalistic(table: tuple[V3Block, ...]) -> tuple[V3Block, ...]:
    """The same columns with 3x3 kernels, no squeeze-excite and ReLU only (slim)."""
    return tuple(row._replace(k=3, se=False, nl=RE) for row in table)


# name: table, last convolution, head, activation of stem and head
NETS = {
    "v3_large": (LARGE, 960, 1280, HS),
    "v3_small": (SMALL, 576, 1024, HS),
    "v3_large_minimalistic": (_minimalistic(LARGE), 960, 1280, RE),
    "v3_small_minimalistic": (_minimalistic(SMALL), 576, 1024, RE),
}


def _build(
    name: str,
    *,
    head_width: int | None = None,
    width_rule: str = "paper",
    hswish: str = "table",
    **options,
) -> MobileNet:
    """Build a V3. `head_width` replaces the 1280 or 1024 after the pooling (1280 gives
    the Small net of the paper's early versions). `width_rule`: `paper`, or what `timm`
    or `torchvision` do at widths other than 1.0. `hswish` is for the ablation of Table 5:
    `table`, `none` (ReLU everywhere), or a number of channels, from whose row on it is
    used (16: everywhere; stem and head stay as they are)."""
    if head_width is not None and head_width < 1:
        raise InputError("model.args.head_width", head_width, "must be a whole number > 0")
    if width_rule not in WIDTH_RULES:
        problem = f"not known; allowed: {', '.join(WIDTH_RULES)}"
        raise InputError("model.args.width_rule", width_rule, problem)
    if hswish not in ("table", "none") and not hswish.isdecimal():
        problem = "not known; allowed: table, none, or channels as text, e.g. '112'"
        raise InputError("model.args.hswish", hswish, problem)
    table, last_conv, hidden, act = NETS[name]
    if hswish != "table":
        start = int(hswish) if hswish != "none" else float("inf")
        table = tuple(row._replace(nl=HS if row.out >= start else RE) for row in table)
    rule = WIDTH_RULES[width_rule]
    if width_rule == "timm" and options["width_mult"] < 0.75:
        rule = replace(rule, stem="fixed")
    design = Design(
        stem=STEM,
        rows=bottlenecks(table, absolute=width_rule == "torchvision"),
        act=RE if hswish == "none" else act,
        last_conv=last_conv,
        hidden=head_width or hidden,
        dropout=0.2,
        bn_eps=0.001,
        bn_momentum=0.01,
        width_rule=rule,
    )
    return MobileNet(design, **options)


def bottlenecks(table: tuple[V3Block, ...], *, absolute: bool = False) -> tuple[Bottleneck, ...]:
    """Turn a table into blocks; `absolute` expansions are the table's, not ratios."""
    in_channels = (STEM, *(row.out for row in table))
    return tuple(
        Bottleneck(
            ratio=None if absolute else Fraction(row.exp, channels),
            expanded=row.exp if absolute else None,
            out=row.out,
            stride=row.s,
            act=row.nl,
            kernel=row.k,
            se="conv" if row.se else "none",
        )
        for row, channels in zip(table, in_channels, strict=False)
    )


for _name in NETS:
    MODELS.register(_name)(partial(_build, _name))
