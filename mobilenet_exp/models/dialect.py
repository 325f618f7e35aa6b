"""How the same weights are run: what differs between codes and is in no tensor.

A network starts in its paper's dialect; weights from elsewhere bring their own.
"""

from dataclasses import dataclass

from torch import nn

# of every kind: SyncBatchNorm is no BatchNorm2d
from torch.nn.modules.batchnorm import _BatchNorm

from mobilenet_exp.models.layers import ACTIVATIONS, ConvBNAct, InvertedResidual
from mobilenet_exp.models.network import MobileNet


@dataclass(frozen=True)
class Dialect:
    """`activation` is V1's (None: the network's own); `se` says where squeeze-excite
    gates: `after_act`, after the depthwise activation, `before_act`, or
    `before_act_if_expanded`, before it in blocks that have an expansion convolution.
    `tf_same` pads as TensorFlow does."""

    bn_eps: float
    activation: str | None = None
    se: str = "after_act"
    tf_same: bool = False

    def words(self) -> str:
        """Return what it says in one line."""
        parts = [f"BN eps {self.bn_eps:g}"]
        if self.activation:
            parts.append(f"activation {self.activation}")
        if self.se != "after_act":
            parts.append(f"squeeze-excite {self.se.replace('_', ' ')}")
        if self.tf_same:
            parts.append("TensorFlow's SAME padding")
        return ", ".join(parts)


def dialect_of(model: MobileNet) -> Dialect:
    """Return the dialect that a network is in."""
    norm = next(module for module in model.modules() if isinstance(module, _BatchNorm))
    places = {
        (block.se_before_act, isinstance(block.expand, ConvBNAct))
        for block in model.modules()
        if isinstance(block, InvertedResidual) and not isinstance(block.se, nn.Identity)
    }
    se = "after_act"
    if any(before for before, _ in places):
        plain = (False, False) in places
        se = "before_act_if_expanded" if plain else "before_act"
    names = {type(build()): name for name, build in ACTIVATIONS.items()}
    return Dialect(
        bn_eps=norm.eps,
        activation=names[type(model.stem.act)] if _is_v1(model) else None,
        se=se,
        tf_same=model.stem.tf_same,
    )


def adopt(model: MobileNet, dialect: Dialect) -> MobileNet:
    """Make the network run as `dialect` says; its weights stay. Returns the network."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eps = dialect.bn_eps
        elif isinstance(module, ConvBNAct):
            module.tf_same = dialect.tf_same
            if dialect.activation and _is_v1(model):
                module.act = ACTIVATIONS[dialect.activation]()
        elif isinstance(module, InvertedResidual):
            expands = isinstance(module.expand, ConvBNAct)
            module.se_before_act = dialect.se == "before_act" or (
                dialect.se == "before_act_if_expanded" and expands
            )
    return model


def _is_v1(model: MobileNet) -> bool:
    return model.name.startswith("v1")
