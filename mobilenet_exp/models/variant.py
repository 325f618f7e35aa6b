"""Variants: differences between code bases that no tensor of a checkpoint shows.

A network is built in its paper's variant, `MobileNet.variant`; loading weights from another
code base sets theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

# the base of all kinds: SyncBatchNorm is not a BatchNorm2d
from torch.nn.modules.batchnorm import _BatchNorm

from mobilenet_exp.config.schema import ModelConfig
from mobilenet_exp.models.layers import ACTIVATIONS, ConvBNAct, InvertedResidual

if TYPE_CHECKING:
    from mobilenet_exp.models.network import MobileNet


@dataclass(frozen=True)
class Variant:
    """BatchNorm's epsilon, activation, order of squeeze-excite, and padding of a code base.

    `activation` is that of nets which exist with several (V1: relu or relu6), None for
    others. `se` says where squeeze-excite gates: `after_act`, after the depthwise
    activation; `before_act`; or `before_act_if_expanded`, before it in blocks that have an
    expansion convolution. `tf_same` pads as TensorFlow does.
    """

    bn_eps: float
    activation: str | None = None
    se: str = "after_act"
    tf_same: bool = False

    def describe(self) -> str:
        """Return it in one line."""
        parts = [f"BN eps {self.bn_eps:g}"]
        if self.activation:
            parts.append(f"activation {self.activation}")
        if self.se != "after_act":
            parts.append(f"squeeze-excite {self.se.replace('_', ' ')}")
        if self.tf_same:
            parts.append("TensorFlow's SAME padding")
        return ", ".join(parts)


def describe_variant(model: nn.Module) -> str:
    """Return a network's variant and stem stride as text, empty if it has no variants."""
    variant = getattr(model, "variant", None)
    return f"{variant.describe()}, stem stride {model.stem_stride}" if variant else ""


def apply_variant(model: MobileNet, variant: Variant) -> MobileNet:
    """Make the network run as `variant` says; its weights stay. Returns the network."""
    if model.variant.activation is None:
        variant = replace(variant, activation=None)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eps = variant.bn_eps
        elif isinstance(module, ConvBNAct):
            module.tf_same = variant.tf_same
            if variant.activation:
                module.act = ACTIVATIONS[variant.activation]()
        elif isinstance(module, InvertedResidual):
            expands = isinstance(module.expand, ConvBNAct)
            module.se_before_act = variant.se == "before_act" or (
                variant.se == "before_act_if_expanded" and expands
            )
    model.variant = variant
    return model


def apply_config(model: MobileNet, config: ModelConfig) -> None:
    """Replace the weights' BN eps and activation by those that the config gives."""
    own = model.variant
    bn_eps = config.bn_eps or own.bn_eps
    activation = config.args.get("activation") or own.activation
    apply_variant(model, replace(own, bn_eps=bn_eps, activation=activation))
