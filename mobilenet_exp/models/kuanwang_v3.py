"""The V3 of kuan-wang/pytorch-mobilenet-v3 (commit 8873a23): the README's 'Ours' rows.

The tables are the paper's final ones, but every block expands, widths are rounded up,
expanded widths are scaled by themselves, the stem keeps 16 channels, squeeze-excite is
linear without bias and comes before the activation, and both modes end in a head of
1280. Its recipe trains without dropout; BN is PyTorch's default.
"""

from dataclasses import replace
from functools import partial

from mobilenet_exp.models.block_specs import Bottleneck
from mobilenet_exp.models.layers import round_up
from mobilenet_exp.models.network import MODELS, Design, MobileNet, WidthRule
from mobilenet_exp.models.v3 import HS, LARGE, SMALL, STEM, V3Block, bottlenecks


def _blocks(table: tuple[V3Block, ...]) -> tuple[Bottleneck, ...]:
    return tuple(
        replace(row, se="none" if row.se == "none" else "linear", always_expands=True)
        for row in bottlenecks(table, absolute=True)
    )


def _design(table: tuple[V3Block, ...], last_conv: int) -> Design:
    return Design(
        stem=STEM,
        rows=_blocks(table),
        act=HS,
        last_conv=last_conv,
        hidden=1280,
        hidden_kind="conv",
        dropout=0.0,
        bn_eps=1e-5,
        bn_momentum=0.1,
        width_rule=WidthRule(stem="fixed", round_channels=round_up),
        se_place="before_act",
    )


DESIGNS = {"kuanwang_v3_large": _design(LARGE, 960), "kuanwang_v3_small": _design(SMALL, 576)}


def _build(name: str, **options) -> MobileNet:
    """Build kuan-wang's V3."""
    return MobileNet(DESIGNS[name], **options)


for _name in DESIGNS:
    MODELS.register(_name)(partial(_build, _name))
