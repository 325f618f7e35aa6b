"""Fake quantisation: where, how far, and what trains through it."""

import pytest
import torch
from torch import nn

from mobilenet_exp.models import build_model
from mobilenet_exp.models.layers import ConvBNAct

pytest.importorskip("torchao")
from mobilenet_exp.models.fake_quantized import LAYERS, FakeQuantized, _quantised_weight

# each generation, hard-swish with squeeze-excite, the gate before the activation, attention
NAMES = ("v1", "v3_small", "kuanwang_v3_small", "v4_hybrid_medium")


def _settled(name):
    """Return a network whose BatchNorm knows its inputs, its rounding, and those inputs."""
    width = 1.0 if "v4" in name else 0.35
    model = build_model(name, width_mult=width, num_classes=5, bn_momentum=1.0, dropout=0.0)
    fake_quantized, images = FakeQuantized(model).train(), torch.randn(8, 3, 64, 64)
    for _ in range(2):
        fake_quantized(images)
    return model, fake_quantized.eval(), images


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_s_numbers_are_rounded_and_every_weight_learns(name):
    model, fake_quantized, images = _settled(name)
    given: dict[nn.Module, torch.Tensor] = {}
    for module in model.modules():
        if isinstance(module, LAYERS):
            module.register_forward_hook(lambda each, args, _: given.update({each: args[0]}))
    with torch.no_grad():
        fake_quantized(images)
    assert len(given) == sum(isinstance(each, LAYERS) for each in model.modules())
    for features in given.values():
        assert features.unique().numel() <= 256
    # in training as in evaluation: a range that nothing was learned of would cut all
    fake_quantized.train()
    fired = []
    for each in fake_quantized.ranges.values():
        each.register_forward_hook(lambda module, *_: fired.append(module))
    fake_quantized(images).square().sum().backward()
    assert all(each.grad is not None for each in model.parameters())
    in_training, fired[:] = list(fired), []
    with torch.inference_mode():
        fake_quantized.eval()(images)
    assert fired == in_training
    assert not any(each._forward_hooks for each in model.modules() if not isinstance(each, LAYERS))
    assert not any(each._forward_pre_hooks for each in model.modules())


@pytest.mark.parametrize("name", ["v2", "v3_small", "v4_hybrid_medium"])
def test_sums_of_shortcuts_are_rounded(name):
    model = build_model(name, num_classes=5)
    blocks = [key for key, each in model.named_modules() if hasattr(each, "drop_branch")]
    adds = [key for key in blocks if model.get_submodule(key).has_shortcut]
    assert len(adds) > 3
    points = FakeQuantized(model).ranges.keys()
    for key in adds:
        assert f"{key.replace('.', '/')}:out" in points


def test_rounded_answers_are_near_the_network_s_own():
    model, fake_quantized, images = _settled("v3_small")
    with torch.inference_mode():
        own, rounded = model.eval()(images), fake_quantized(images)
    off = ((rounded - own).norm() / own.norm()).item()
    assert 1e-4 < off < 0.4


@pytest.mark.parametrize(("bits", "most"), [(7, 63), (8, 127)])
def test_weights_are_rounded_by_channel_whatever_batchnorm_multiplies_them_by(bits, most):
    weight = torch.randn(6, 4, 3, 3) * torch.logspace(-4, 2, 6).view(-1, 1, 1, 1)
    weight[2] = 0
    found = _quantised_weight(weight, bits)
    for before, after in zip(weight, found, strict=True):
        step = before.abs().max() / most
        assert (after - before).abs().max() <= step / 2 + 1e-9
        assert after.abs().max() == pytest.approx(before.abs().max().item())
    gamma = torch.tensor([3.0, 1.0, 5.0, 0.1, 7.0, 1e-3]).view(-1, 1, 1, 1)
    torch.testing.assert_close(_quantised_weight(weight * gamma, bits), found * gamma)


def test_other_weights_are_rounded_by_the_same_ranges_and_change_none():
    _, fake_quantized, images = _settled("v1")
    other = fake_quantized.around(build_model("v1", width_mult=0.35, num_classes=5))
    before = {key: value.clone() for key, value in fake_quantized.ranges.state_dict().items()}
    other.train()(100 * images)
    for key, value in fake_quantized.ranges.state_dict().items():
        if "observer_enabled" not in key:
            assert torch.equal(value, before[key]), key
    fake_quantized.train()(100 * images)
    assert not torch.equal(
        fake_quantized.ranges["stem:in"].activation_post_process.max_val,
        before["stem:in.activation_post_process.max_val"],
    )


def test_batchnorm_and_its_activation_are_rounded_once_where_they_are_one_step():
    model, fake_quantized, _ = _settled("v3_small")
    blocks = {
        name.replace(".", "/"): each
        for name, each in model.named_modules()
        if isinstance(each, ConvBNAct)
    }
    for name, block in blocks.items():
        has_hard_swish = isinstance(block.act, nn.Hardswish)
        assert (f"{name}/bn:out" in fake_quantized.ranges) == has_hard_swish
        assert (f"{name}/act:out" in fake_quantized.ranges) != has_hard_swish
