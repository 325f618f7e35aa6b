"""The counter, against figures worked out by hand."""

import pytest
import torch
from torch import nn

from mobilenet_exp import build_model, profile_model
from mobilenet_exp.models.profiling import profile_blocks, profile_layers


def test_convolution_by_hand():
    # 8x8 outputs x 5 channels x (3x3 kernel x 3 inputs), and a bias that counts as params only
    profile = profile_model(nn.Conv2d(3, 5, 3, stride=2, padding=1), 16)
    assert profile == (8 * 8 * 5 * 3 * 3 * 3, 5 * 3 * 3 * 3 + 5)


def test_depthwise_convolution_by_hand():
    profile = profile_model(nn.Conv2d(3, 3, 5, padding=2, groups=3, bias=False), 10)
    assert profile == (10 * 10 * 3 * 25, 3 * 25)


def test_linear_by_hand_and_what_is_free():
    net = nn.Sequential(
        nn.BatchNorm2d(3), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 7)
    )
    assert profile_model(net, 32) == (3 * 7, 3 * 7 + 7 + 2 * 3)


def test_the_model_is_left_as_it_was():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    profile_model(net, 32)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", ["v1", "v2", "v3_small", "kuanwang_v3_small", "v4_hybrid_medium"])
def test_blocks_and_layers_add_up_to_the_model(name):
    model = build_model(name)
    whole = profile_model(model, 224)
    for parts in (profile_blocks(model, 224), profile_layers(model, 224)):
        assert sum(each.madds for each in parts) == whole.madds
        assert sum(each.params for each in parts) == whole.params
    layers = {each.layer: each for each in profile_layers(model, 224)}
    stem = layers["stem.conv"]
    # 3 x 3 x 3 weights for each of 112 x 112 pixels
    assert stem.madds == 112 * 112 * stem.params
    assert (stem.kind, stem.params % 27) == ("Conv2d", 0)
