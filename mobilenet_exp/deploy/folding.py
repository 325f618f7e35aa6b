"""A network for inference: BatchNorm and layer scales folded into the convolutions before them."""

import copy

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mobilenet_exp.core.errors import first_line
from mobilenet_exp.models.layers import ConvBNAct
from mobilenet_exp.models.layers_v4 import LayerScale, MultiQueryAttention, UniversalBottleneck


@torch.no_grad()
def folded(model: nn.Module, *, layer_scales: bool = True) -> nn.Module:
    """Return a copy in eval mode with BatchNorm folded into the convolutions before it.

    With `layer_scales` V4's layer scales are folded, too. A network that is not ours must be
    traceable by torch.fx; there a plain BatchNorm is folded that follows a plain convolution.
    Raises ValueError where nothing can be folded.
    """
    model = copy.deepcopy(model).eval()
    blocks = [each for each in model.modules() if isinstance(each, ConvBNAct)]
    for block in blocks:
        block.conv = fuse_conv_bn_eval(_plain(block.conv), block.bn)
        block.bn = nn.Identity()
    if blocks:
        if layer_scales:
            _fold_layer_scales(model)
        return model
    before = _num_norms(model)
    try:
        found = fuse(model)
    except Exception as error:
        # tracing fails in as many ways as there are networks
        raise ValueError(f"torch.fx cannot trace it: {first_line(error)}") from error
    if before and _num_norms(found) == before:
        raise ValueError("none of its BatchNorms follows a plain convolution")
    return found


def _fold_layer_scales(model: nn.Module) -> None:
    for block in model.modules():
        if not isinstance(block, UniversalBottleneck | MultiQueryAttention):
            continue
        scale = block.layer_scale
        if isinstance(scale, LayerScale):
            conv = block.output if isinstance(block, MultiQueryAttention) else block.project.conv
            conv.weight *= scale.gamma.view(-1, 1, 1, 1)
            if conv.bias is not None:
                conv.bias *= scale.gamma
            block.layer_scale = nn.Identity()


def _plain(conv: nn.Conv2d) -> nn.Conv2d:
    """Return torch's own convolution with the same weights; ours has no bias."""
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        groups=conv.groups,
        bias=False,
        device="meta",
    )
    plain.weight = conv.weight
    return plain.eval()


def _num_norms(model: nn.Module) -> int:
    return sum(isinstance(each, nn.BatchNorm2d) for each in model.modules())
