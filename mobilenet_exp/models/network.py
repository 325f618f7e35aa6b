"""`MobileNet`, built from block specifications. Only this module applies `width_mult`."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor, nn

from mobilenet_exp.config.schema import ModelConfig
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.registry import Registry
from mobilenet_exp.models.block_specs import BlockSpec
from mobilenet_exp.models.layers import (
    ACTIVATIONS,
    ConvBNAct,
    GlobalPool,
    HiddenLinear,
    round_to,
)
from mobilenet_exp.models.layers_v4 import MultiQueryAttention
from mobilenet_exp.models.variant import Variant

# Filled by the family modules beside this one, and by modules of the user's own.
MODELS: Registry = Registry("model.name")
RANGES = {
    entry.name: entry.metadata["range"]
    for entry in fields(ModelConfig)
    if "range" in entry.metadata
}


@dataclass(frozen=True)
class WidthRule:
    """Which parts `width_mult` scales, and how channels are rounded.

    A part `follows` (is always scaled), `grows` (is scaled only above 1.0) or is `fixed`.
    The blocks are always scaled.
    """

    stem: str = "follows"
    last_conv: str = "follows"
    hidden: str = "grows"
    round_channels: Callable[[float], int] = round_to
    # the last convolution as a multiple of the last block's output, not by itself
    last_conv_ratio: int | None = None

    def apply(self, width_mult: float, channels: float, part: str = "follows") -> int:
        if part == "fixed":
            return int(channels)
        width_mult = max(width_mult, 1) if part == "grows" else width_mult
        return self.round_channels(channels * width_mult)


@dataclass(frozen=True)
class Design:
    """A whole network at width 1.0, as its paper gives it."""

    stem: int
    rows: tuple[BlockSpec, ...]
    # activation of stem and head
    act: str
    # 1x1 convolution before the pooling; None: there is none
    last_conv: int | None
    # layer after the pooling, before the classifier; None: there is none
    hidden: int | None
    # dropout probability before the classifier
    dropout: float
    bn_eps: float
    # PyTorch's sense: 1 - the papers' decay
    bn_momentum: float
    # linear with bias (V3), conv: the same as a 1x1 convolution (kuan-wang's V3), or
    # conv_bn: a 1x1 convolution without bias, with BN (V4)
    hidden_kind: str = "linear"
    width_rule: WidthRule = WidthRule()
    # whether weights for it exist with another activation than `act` (V1)
    exists_with_other_act: bool = False
    # where squeeze-excite gates, see `Variant`
    se_place: str = "after_act"


class MobileNet(nn.Module):
    """A MobileNet of any generation: images (N, 3, H, W) to logits (N, num_classes).

    `width_mult` > 0 is the paper's alpha. `stem_stride` is 2 in every paper; 1 keeps
    the grid of small images (32 px) from shrinking away. `dropout`, `bn_eps` and
    `bn_momentum` default to the design's. `variant` says how the weights are run.
    Raises InputError for a value out of range.
    """

    # the arguments of `build_model`
    name: str = ""
    width_mult: float = 1.0
    args: dict[str, object] = {}  # noqa: RUF012 - replaced, never changed

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
        asked = {
            "width_mult": width_mult, "num_classes": num_classes, "dropout": dropout,
            "stem_stride": stem_stride, "bn_eps": bn_eps, "bn_momentum": bn_momentum,
        }  # fmt: skip
        for key, value in asked.items():
            RANGES[key].check(f"model.{key}", value)
        eps = design.bn_eps if bn_eps is None else bn_eps
        momentum = design.bn_momentum if bn_momentum is None else bn_momentum
        norm = partial(nn.BatchNorm2d, eps=eps, momentum=momentum)
        self.num_classes, self.stem_stride = num_classes, stem_stride
        activation = design.act if design.exists_with_other_act else None
        self.variant = Variant(bn_eps=eps, activation=activation, se=design.se_place)
        rule = design.width_rule
        scaled = partial(rule.apply, width_mult)
        channels = scaled(design.stem, rule.stem)
        self.stem = ConvBNAct(3, channels, 3, stride=stem_stride, act=design.act, norm=norm)
        self.blocks = nn.Sequential()
        for row in design.rows:
            out_channels = scaled(row.out, "fixed" if row.fixed else "follows")
            self.blocks.append(row.build(channels, out_channels, scaled, norm))
            channels = out_channels

        self.last_conv: nn.Module = nn.Identity()
        if design.last_conv is not None:
            ratio = rule.last_conv_ratio
            out_channels = ratio * channels if ratio else scaled(design.last_conv, rule.last_conv)
            self.last_conv = ConvBNAct(channels, out_channels, 1, act=design.act, norm=norm)
            channels = out_channels
        self.pool = GlobalPool()
        self.hidden: nn.Module = nn.Identity()
        self.hidden_act: nn.Module = nn.Identity()
        if design.hidden is not None:
            out_channels = scaled(design.hidden, rule.hidden)
            kinds: dict[str, Callable[[int, int], nn.Module]] = {
                "linear": HiddenLinear,
                "conv": partial(nn.Conv2d, kernel_size=1),
                "conv_bn": partial(ConvBNAct, kernel=1, act=None, norm=norm),
            }
            self.hidden = kinds[design.hidden_kind](channels, out_channels)
            self.hidden_act = ACTIVATIONS[design.act]()
            channels = out_channels
        self.dropout = nn.Dropout(design.dropout if dropout is None else dropout)
        self.classifier = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        features = self.blocks(features)
        features = self.last_conv(features)
        features = self.pool(features)
        features = self.hidden_act(self.hidden(features)).flatten(1)
        return self.classifier(self.dropout(features))


@torch.no_grad()
def init_weights(model: MobileNet) -> None:
    """Draw the initial weights: convolutions He-normal by fan-out, linear N(0, 0.01).

    Source: torchvision's and the PyTorch ports' common choice; the papers' slim code
    draws every weight from a truncated normal of sd 0.09 (V1, V2) or 0.008 (V3).
    """
    if model.classifier.weight.is_meta:
        # no numbers to draw, as in a network that is only counted
        return
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, MultiQueryAttention):
            module.init_weights()


def set_stochastic_depth(model: nn.Module, name: str, peak: float) -> None:
    """Drop whole branches of shortcut blocks in training, image by image.

    The probability rises linearly with a block's index, from 0 for the first towards
    `peak` (Huang et al., arXiv:1603.09382); blocks are counted as timm does. Raises
    InputError if no block has a shortcut.
    """
    blocks = getattr(model, "blocks", ())
    droppable = [hasattr(block, "drop_branch") for block in blocks]
    if not any(droppable):
        raise InputError("model.stochastic_depth", peak, f"{name} has no shortcuts; must be 0")
    from torchvision.ops import StochasticDepth

    for index, block in enumerate(blocks):
        if droppable[index]:
            block.drop_branch = StochasticDepth(peak * index / len(droppable), "row")
