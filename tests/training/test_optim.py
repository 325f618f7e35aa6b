"""Optimizers by name: which parameters decay, and the two rules called RMSprop."""

import pytest
import torch
from torch import nn

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.models import build_model
from mobilenet_exp.training.optim import OPTIMIZERS, build_optimizer, load_optimizer


def _build(name, model=None, **options):
    model = model or build_model("v3_small", width_mult=0.35, num_classes=4)
    return build_optimizer(model, name, lr=0.1, weight_decay=0.01, **options)


def test_decay_spares_norm_and_bias_unless_asked():
    model = build_model("v3_small", width_mult=0.35, num_classes=4)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    spared = {id(p) for m in norms for p in m.parameters()} | {id(p) for p in biases}
    decays = {
        id(p): group["weight_decay"]
        for group in _build("sgd", model).param_groups
        for p in group["params"]
    }
    assert len(decays) == len(list(model.parameters()))
    assert {key for key, decay in decays.items() if decay == 0} == spared
    (group,) = _build("sgd", model, decay_norm_and_bias=True).param_groups
    assert group["weight_decay"] == 0.01
    assert len(group["params"]) == len(decays)


def test_every_option_takes_a_step(compose_config):
    for name in OPTIMIZERS.names():
        config = compose_config(f"optimizer={name}").optimizer
        model = nn.Linear(3, 2)
        before = model.weight.clone()
        optimizer = _build(name, model, args=config.args)
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        assert not torch.equal(model.weight, before), name


def _first_step(compose_config, name, gradient):
    weight = nn.Parameter(torch.zeros(1, 1))
    holder = nn.Module()
    holder.weight = weight
    args = compose_config(f"optimizer={name}").optimizer.args
    optimizer = build_optimizer(holder, name, lr=1.0, weight_decay=0.0, args=args)
    weight.grad = torch.full((1, 1), gradient)
    optimizer.step()
    return -weight.item()


@pytest.mark.parametrize("gradient", [1e-3, 0.1, 10.0])
def test_first_step_of_the_two_rmsprops_by_hand(compose_config, gradient):
    """TensorFlow's average starts at one, epsilon in the root; PyTorch's at zero, outside."""
    tf_rule = gradient / (0.9 * 1 + 0.1 * gradient**2 + 1e-3) ** 0.5
    torch_rule = gradient / ((0.1 * gradient**2) ** 0.5 + 0.0316)
    assert _first_step(compose_config, "rmsprop", gradient) == pytest.approx(tf_rule, rel=1e-5)
    found = _first_step(compose_config, "rmsprop_torch", gradient)
    assert found == pytest.approx(torch_rule, rel=1e-5)


def test_unknown_names_and_arguments_are_refused():
    with pytest.raises(InputError, match="optimizer.name=adagrad: not known; allowed: sgd"):
        _build("adagrad")
    for args, message in (
        ({"beta": 1}, "optimizer.args.beta=1: not an option of sgd; allowed: momentum, nesterov"),
        ({"weight_decay": 0.5}, "optimizer.args.weight_decay=0.5: not an option"),
        ({"momentum": "abc"}, "optimizer.args.momentum=abc: must be a number"),
        ({"nesterov": 7}, "optimizer.args.nesterov=7: must be true or false"),
        ({"momentum": -1.0}, "not accepted by sgd: .*momentum"),
    ):
        with pytest.raises(InputError, match=message):
            _build("sgd", args=args)


def test_depthwise_filters_may_be_spared_from_decay():
    model = build_model("v1", width_mult=0.25, num_classes=10)
    depthwise = {id(block.depthwise.conv.weight) for block in model.blocks}
    for decays in (True, False):
        optimizer = build_optimizer(model, "sgd", lr=0.1, weight_decay=1e-4, decay_depthwise=decays)
        decayed = {id(each) for each in optimizer.param_groups[0]["params"]}
        assert (depthwise <= decayed) is decays
        assert depthwise.isdisjoint(decayed) is not decays
        assert id(model.classifier.weight) in decayed


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop"])
def test_a_state_of_another_device_or_layout_leaves_the_rule_as_it_was_built(name):
    def stepped(layout):
        torch.manual_seed(0)
        model = nn.Conv2d(4, 8, 3).to(memory_format=layout)
        optimizer = _build(name, model)
        model(torch.ones(2, 4, 8, 8)).sum().backward()
        optimizer.step()
        return model, optimizer

    _, theirs = stepped(torch.contiguous_format)
    saved = theirs.state_dict()
    for group in saved["param_groups"]:
        group["fused"] = True
    model, ours = stepped(torch.channels_last)
    expected = {key: value.clone() for key, value in ours.state[model.weight].items()
                if isinstance(value, torch.Tensor)}  # fmt: skip
    load_optimizer(ours, saved)
    if name != "rmsprop":
        # timm's rules know no such choice
        assert [group["fused"] for group in ours.param_groups] == [None] * len(ours.param_groups)
    for key, value in expected.items():
        found = ours.state[model.weight][key]
        torch.testing.assert_close(found, value)
        assert found.stride() == value.stride(), key


def test_sgd_is_not_fused_where_float16_may_overflow_first():
    assert not any(group.get("fused") for group in _build("sgd", nn.Linear(2, 2)).param_groups)
    assert not getattr(_build("sgd", nn.Linear(2, 2)), "_step_supports_amp_scaling", False)
