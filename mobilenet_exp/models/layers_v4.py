"""V4's blocks: the universal inverted bottleneck and mobile multi-query attention.

Source: arXiv:2404.10518, sections 3 and 4.1. Widths arrive here already scaled.
"""

import torch
import torch.fx
from torch import Tensor, nn

from mobilenet_exp.models.layers import ConvBNAct, Norm, add_shortcut

# it looks for functions in the module that calls them
torch.fx.wrap("add_shortcut")

# what the hybrids' layer scale starts from (TF garden, timm)
LAYER_SCALE = 1e-5


class LayerScale(nn.Module):
    """One learned factor per channel on a block's output, before its shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), LAYER_SCALE))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.gamma.view(-1, 1, 1)


class UniversalBottleneck(nn.Module):
    """Optional depthwise, expand 1x1, optional depthwise, project 1x1 linear.

    A kernel of 0 leaves its depthwise convolution out: ExtraDW has both, IB the second,
    ConvNext the first, FFN none. The first has no activation; the stride is the second's, or
    the first's if there is no second.
    """

    def __init__(
        self,
        in_channels: int,
        expanded: int,
        out_channels: int,
        *,
        start_kernel: int,
        kernel: int,
        stride: int,
        act: str,
        norm: Norm,
        layer_scale: bool,
    ) -> None:
        super().__init__()
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.drop_branch: nn.Module = nn.Identity()
        self.start: nn.Module = nn.Identity()
        if start_kernel:
            self.start = ConvBNAct(
                in_channels,
                in_channels,
                start_kernel,
                stride=1 if kernel else stride,
                groups=in_channels,
                act=None,
                norm=norm,
            )
        self.expand = ConvBNAct(in_channels, expanded, 1, act=act, norm=norm)
        self.depthwise: nn.Module = nn.Identity()
        if kernel:
            self.depthwise = ConvBNAct(
                expanded, expanded, kernel, stride=stride, groups=expanded, act=act, norm=norm
            )
        self.project = ConvBNAct(expanded, out_channels, 1, act=None, norm=norm)
        self.layer_scale = LayerScale(out_channels) if layer_scale else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        out = self.start(features)
        out = self.depthwise(self.expand(out))
        out = self.layer_scale(self.project(out))
        return add_shortcut(features, self.drop_branch(out)) if self.has_shortcut else out


class MultiQueryAttention(nn.Module):
    """Mobile MQA: many query heads, one key and one value head, a shortcut around it.

    `kv_stride > 1` halves (and so on) the grid of keys and values by a depthwise
    convolution. Queries, keys and values all have `head_dim` channels a head.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        head_dim: int,
        kv_stride: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.has_shortcut = True
        self.drop_branch: nn.Module = nn.Identity()
        self.bn = norm(channels)
        self.query = nn.Conv2d(channels, heads * head_dim, 1, bias=False)
        self.key_down = self._down(channels, kv_stride, norm)
        self.key = nn.Conv2d(channels, head_dim, 1, bias=False)
        self.value_down = self._down(channels, kv_stride, norm)
        self.value = nn.Conv2d(channels, head_dim, 1, bias=False)
        self.output = nn.Conv2d(heads * head_dim, channels, 1, bias=False)
        self.layer_scale = LayerScale(channels)

    @staticmethod
    def _down(channels: int, stride: int, norm: Norm) -> nn.Module:
        if stride == 1:
            return nn.Identity()
        return ConvBNAct(channels, channels, 3, stride=stride, groups=channels, act=None, norm=norm)

    def forward(self, features: Tensor) -> Tensor:
        count, _, height, width = features.shape
        normed = self.bn(features)
        query = self.query(normed).view(count, self.heads, self.head_dim, height * width)
        key = self.key(self.key_down(normed)).flatten(2)
        value = self.value(self.value_down(normed)).flatten(2)
        # the heads share keys and values, so their queries line up as one longer sequence, of
        # one head: ONNX has the operator with a dimension for heads alone
        mixed = nn.functional.scaled_dot_product_attention(
            query.transpose(2, 3).flatten(1, 2)[:, None],
            key.transpose(1, 2)[:, None],
            value.transpose(1, 2)[:, None],
        )
        mixed = mixed.reshape(count, self.heads, height * width, self.head_dim).transpose(2, 3)
        out = self.output(mixed.reshape(count, -1, height, width))
        return add_shortcut(features, self.drop_branch(self.layer_scale(out)))

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the projections from Xavier's uniform, which keeps attention stable (timm)."""
        for module in (self.query, self.key, self.value, self.output):
            nn.init.xavier_uniform_(module.weight)
