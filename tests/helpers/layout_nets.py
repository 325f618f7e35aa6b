"""Networks with the keys, shapes and order of operations of code that cannot be installed.

Written from `state_dict` listings and the papers' tables, apart from our own builders,
to hold our importers against. Widths and squeeze-excite follow each code's own rule.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

LARGE = (
    # kernel, expanded, out, squeeze-excite, h-swish, stride
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2),
    (5, 120, 40, 1, 0, 1), (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1),
    (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1),
    (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1),
)  # fmt: skip
SMALL = (
    (3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 1, 1, 2),
    (5, 240, 40, 1, 1, 1), (5, 240, 40, 1, 1, 1), (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1),
    (5, 288, 96, 1, 1, 2), (5, 576, 96, 1, 1, 1), (5, 576, 96, 1, 1, 1),
)  # fmt: skip
V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
      (6, 320, 1, 1))  # fmt: skip


def near8(channels: float, divisor: int = 8) -> int:
    kept = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return kept + divisor if kept < 0.9 * channels else kept


def ceil8(channels: float) -> int:
    return math.ceil(channels / 8) * 8


def _conv_bn(inp: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inp, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out)]


class Gate(nn.Module):
    """`fc.0` and `fc.2` on the pooled channels, hard sigmoid."""

    def __init__(self, channels: int, squeezed: int, bias: bool) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, squeezed, bias),
            nn.ReLU(),
            nn.Linear(squeezed, channels, bias),
            nn.Hardsigmoid(),
        )

    def forward(self, images: Tensor) -> Tensor:
        return images * self.fc(images.mean((2, 3)))[:, :, None, None]


class Flat(nn.Module):
    """A block whose layers stand in one list, `conv.0` and so on, around a shortcut."""

    def __init__(self, layers: list[nn.Module], is_residual: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(*layers)
        self.is_residual = is_residual

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images) + (images if self.is_residual else 0)


class FlatV2(nn.Module):
    """tonylins' V2, or d-li14's with `last_apart`; `old_head` is tonylins' before 99f2136."""

    def __init__(self, width: float = 1.0, *, last_apart: bool, old_head: bool = False) -> None:
        super().__init__()
        divisor = 4 if last_apart and width == 0.1 else 8

        def scaled(channels: int) -> int:
            return near8(channels * width, divisor) if last_apart else ceil8(channels * width)

        inp = scaled(32) if last_apart else 32
        layers = [nn.Sequential(*_conv_bn(3, inp, 3, 2), nn.ReLU6())]
        for t, c, n, s in V2:
            out = c if t == 1 and not last_apart else scaled(c)
            for i in range(n):
                stride, hidden = (s if i == 0 else 1), inp * t
                expand = [*_conv_bn(inp, hidden, 1), nn.ReLU6()] if t > 1 else []
                depthwise = [*_conv_bn(hidden, hidden, 3, stride, hidden), nn.ReLU6()]
                block = [*expand, *depthwise, *_conv_bn(hidden, out, 1)]
                layers.append(Flat(block, stride == 1 and inp == out))
                inp = out
        features = scaled(1280) if width > 1 else 1280
        last = nn.Sequential(*_conv_bn(inp, features, 1), nn.ReLU6())
        if last_apart:
            self.features, self.conv = nn.Sequential(*layers), last
        else:
            self.features, self.conv = nn.Sequential(*layers, last), nn.Identity()
        linear = nn.Linear(features, 1000)
        self.classifier = nn.Sequential(nn.Dropout(0.2), linear) if old_head else linear

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.conv(self.features(images)).mean((2, 3)))


class DLi14V3(nn.Module):
    """d-li14's V3: squeeze-excite before the activation in blocks that expand, else after."""

    def __init__(self, mode: str, width: float = 1.0) -> None:
        super().__init__()
        table, head = (LARGE, 1280) if mode == "large" else (SMALL, 1024)
        inp, before = near8(16 * width), 16
        layers = [nn.Sequential(*_conv_bn(3, inp, 3, 2), nn.Hardswish())]
        for kernel, exp, c, se, hs, stride in table:
            out, hidden = near8(c * width), near8(inp * exp / before)
            act = nn.Hardswish if hs else nn.ReLU
            gate = Gate(hidden, near8(hidden // 4), True) if se else nn.Identity()
            depthwise = _conv_bn(hidden, hidden, kernel, stride, hidden)
            if hidden == inp:
                block = [*depthwise, act(), gate]
            else:
                block = [*_conv_bn(inp, hidden, 1), act(), *depthwise, gate, act()]
            layers.append(Flat([*block, *_conv_bn(hidden, out, 1)], stride == 1 and inp == out))
            inp, before = out, c
        self.features = nn.Sequential(*layers)
        self.conv = nn.Sequential(*_conv_bn(inp, hidden, 1), nn.Hardswish())
        head = near8(head * max(width, 1))
        self.classifier = nn.Sequential(
            nn.Linear(hidden, head), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(head, 1000)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.conv(self.features(images)).mean((2, 3)))


class KuanWangV3(nn.Module):
    """kuan-wang's V3: every block expands, bias-free gates before the activation."""

    def __init__(self, mode: str, width: float = 1.0) -> None:
        super().__init__()
        table, last = (LARGE, 960) if mode == "large" else (SMALL, 576)
        inp = 16
        layers = [nn.Sequential(*_conv_bn(3, inp, 3, 2), nn.Hardswish())]
        for kernel, exp, c, se, hs, stride in table:
            out, hidden = ceil8(c * width), ceil8(exp * width)
            act = nn.Hardswish if hs else nn.ReLU
            gate = Gate(hidden, hidden // 4, False) if se else nn.Identity()
            block = [
                *_conv_bn(inp, hidden, 1), act(),
                *_conv_bn(hidden, hidden, kernel, stride, hidden), gate, act(),
                *_conv_bn(hidden, out, 1),
            ]  # fmt: skip
            layers.append(Flat(block, stride == 1 and inp == out))
            inp = out
        last, head = ceil8(last * width), ceil8(1280 * width) if width > 1 else 1280
        layers += [
            nn.Sequential(*_conv_bn(inp, last, 1), nn.Hardswish()),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(last, head, 1),
            nn.Hardswish(),
        ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.8), nn.Linear(head, 1000))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).mean((2, 3)))


class MarvisV1(nn.Module):
    """marvis' V1: `model.0` to `model.14`, ReLU, `fc`."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Sequential(*_conv_bn(3, 32, 3, 2), nn.ReLU())]
        inp = 32
        for out, stride in (
            (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1),
            (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
        ):  # fmt: skip
            block = [*_conv_bn(inp, inp, 3, stride, inp), nn.ReLU()]
            layers.append(nn.Sequential(*block, *_conv_bn(inp, out, 1), nn.ReLU()))
            inp = out
        self.model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(1024, 1000)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.model(images).flatten(1))


@torch.no_grad()
def randomize(net: nn.Module) -> nn.Module:
    """Draw weights and running statistics at which a mistake would show; eval mode."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.2, 0.2)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.num_batches_tracked.fill_(7)
        elif isinstance(module, nn.Linear):
            module.weight.normal_(std=0.05)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        elif hasattr(module, "gamma"):
            # layer scale, near 0 when new
            module.gamma.uniform_(0.5, 1.0)
    return net.eval()


@torch.no_grad()
def assert_same_logits(
    theirs: nn.Module, ours: nn.Module, side: int = 64, *, exact_to: float = 1e-8
) -> None:
    images = torch.randn(2, 3, side, side)
    expected, logits = theirs(images), ours(images)
    # 1e-5 of unit-scaled logits in float32; in float64 nothing but rounding is left
    scale = expected.std()
    torch.testing.assert_close(logits / scale, expected / scale, rtol=0, atol=1e-5)
    # the fused attention of a CPU approximates exp, also in float64
    with sdpa_kernel(SDPBackend.MATH):
        exactly, exact = theirs.double()(images.double()), ours.double()(images.double())
    torch.testing.assert_close(exact / scale, exactly / scale, rtol=0, atol=exact_to)
    theirs.float(), ours.float()
