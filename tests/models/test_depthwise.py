"""The depthwise convolution's own gradient, beside autograd's in float64."""

import pytest
import torch
from torch import nn

from mobilenet_exp.models import build_model, layers
from mobilenet_exp.models.layers import DepthwiseConv2d


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (2, 3), (3, 3), (4, 4), (6, 5)])
def test_all_gradients_are_autograd_s(kernel, stride, height, width, monkeypatch):
    monkeypatch.setattr(layers, "depthwise_conv", layers._Depthwise.apply)
    ours = DepthwiseConv2d(6, kernel, stride).double()
    plain = nn.Conv2d(6, 6, kernel, stride, kernel // 2, groups=6, bias=False).double()
    plain.load_state_dict(ours.state_dict())
    features = torch.randn(4, 6, height, width).double().to(memory_format=torch.channels_last)
    found = []
    for conv in (ours, plain):
        given = features.clone().requires_grad_()
        out = conv(given)
        torch.manual_seed(1)
        (out * torch.randn_like(out)).sum().backward()
        found.append((out, given.grad, conv.weight.grad))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_it_is_used_where_it_pays_and_nowhere_else(monkeypatch):
    used = []
    monkeypatch.setattr(
        layers, "weight_gradient", lambda *_: used.append(True) or torch.zeros(8, 1, 5, 5)
    )
    conv = DepthwiseConv2d(8, 5, 1)

    def uses(side, **options):
        used.clear()
        out = conv(torch.randn(2, 8, side, side, **options))
        if out.requires_grad:
            out.sum().backward()
        return bool(used)

    assert uses(4)
    assert not uses(5)
    with torch.no_grad():
        assert not uses(4)
    conv.weight.requires_grad_(False)
    assert not uses(4, requires_grad=True)


def test_frozen_features_need_no_gradient():
    conv = DepthwiseConv2d(8, 5, 1)
    conv(torch.randn(2, 8, 2, 2)).sum().backward()
    assert conv.weight.grad.shape == conv.weight.shape


@pytest.mark.parametrize("side", [32, 64])
def test_networks_can_be_traced(side, tmp_path):
    """By torch.fx, as torchvision's feature extractors do, and by torch.jit, while learning."""
    model = build_model("v3_small", width_mult=0.35, num_classes=5).eval()
    images = torch.randn(2, 3, side, side)
    expected = model(images)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images), expected)
    traced = torch.jit.trace(model, images)
    traced.save(tmp_path / "traced.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "traced.pt")(images), expected)
