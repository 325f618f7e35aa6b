"""Our activations are torch's, and copy nothing."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mobilenet_exp.models import build_model
from mobilenet_exp.models.layers import ACTIVATIONS

THEIRS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hswish": nn.Hardswish, "gelu": nn.GELU}
# with the ends of every piece, and what lies beyond
POINTS = torch.tensor([-9.0, -3.0, -1.5, -0.0, 0.0, 1.5, 3.0, 6.0, 6.5, 100.0])


def _results(act: nn.Module, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = features.clone().requires_grad_()
    out = act(leaf * 1)
    out.backward(torch.linspace(-1, 2, out.numel()).view_as(out).to(out))
    return out.detach(), leaf.grad


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_and_gradients_are_torch_s_to_the_bit(name, dtype):
    features = torch.cat([POINTS, 4 * torch.randn(1000)]).to(dtype)
    ours, theirs = (_results(act(), features) for act in (ACTIVATIONS[name], THEIRS[name]))
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    with torch.no_grad():
        assert torch.equal(ACTIVATIONS[name]()(features.clone()), ours[0])


class Operators(TorchDispatchMode):
    """The names of all operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name().partition(".")[0])
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("name", ["relu6", "hswish"])
def test_nothing_is_copied_first(name):
    features = torch.randn(2, 8, 4, 4, requires_grad=True)
    found = []
    for module in (THEIRS[name](inplace=True), ACTIVATIONS[name]()):
        with Operators() as operators:
            module(features * 1).sum().backward()
        found.append(operators.seen.count("aten::clone"))
    assert found == [1, 0]


@pytest.mark.parametrize("name", ["v2", "v3_small", "v4_conv_small"])
def test_a_network_with_them_can_be_copied_traced_and_exported(name):
    model = build_model(name, width_mult=0.35, num_classes=4).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = model(images).detach()
    for found in (
        copy.deepcopy(model),
        torch.fx.symbolic_trace(model),
        torch.jit.trace(model, images),
        torch.export.export(model, (images,)).module(),
    ):
        torch.testing.assert_close(found(images).detach(), expected)
