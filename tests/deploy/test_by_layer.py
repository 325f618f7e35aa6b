"""Time by layer beside madds by layer."""

import torch

from mobilenet_exp.core.console import no_progress
from mobilenet_exp.deploy.by_layer import BETWEEN, kind_of, measure_layers
from mobilenet_exp.deploy.folding import folded
from mobilenet_exp.deploy.nets import build_nets
from mobilenet_exp.machine.compute import Precision
from mobilenet_exp.models.layers import ConvBNAct


def test_layers_add_up_to_the_network():
    # V4's attention multiplies outside layers
    for name in ("v3_small", "torchvision:resnet18", "v4_hybrid_medium"):
        (net,) = build_nets([name], 64)
        found = measure_layers(net.model, torch.randn(2, 3, 64, 64), rounds=2, progress=no_progress)
        assert sum(each.madds for each in found) == net.profile.madds
        assert all(each.ms >= 0 for each in found)
        assert all(each.ms > 0 for each in found if each.madds)
        blocks = list(dict.fromkeys(each.block for each in found))
        assert blocks[-1] == BETWEEN
        kinds = {each.kind for each in found}
        assert {"convolution", "normalisation", "activation", "linear"} <= kinds
        assert ("depthwise" in kinds) == (name != "torchvision:resnet18")
        outside = sum(each.madds for each in found if each.kind == "other")
        assert (outside > 0) == (name == "v4_hybrid_medium")
        # nothing of the measuring stays
        assert not any(each._forward_hooks for each in net.model.modules())


def test_blocks_of_a_traced_network_keep_their_layers():
    """torch.fx calls layers alone, without the blocks around them."""
    (net,) = build_nets(["torchvision:mobilenet_v3_small"], 64)
    found = measure_layers(
        folded(net.model), torch.randn(2, 3, 64, 64), rounds=2, progress=no_progress
    )
    assert sum(each.madds for each in found) == net.profile.madds
    assert all(each.madds >= 0 for each in found)
    assert {"features.1", "features.5", "classifier.0"} <= {each.block for each in found}
    between = sum(each.ms for each in found if each.block == BETWEEN)
    assert between < 0.6 * sum(each.ms for each in found)


def test_layers_compute_in_the_precision_that_is_asked_for():
    seen = []
    (net,) = build_nets([{"name": "v3_small", "width_mult": 0.35}], 32)
    net.model.classifier.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    for precision in (Precision.FLOAT32, Precision.BFLOAT16):
        images = torch.randn(1, 3, 32, 32)
        measure_layers(net.model, images, rounds=1, progress=no_progress, precision=precision)
    assert {torch.float32, torch.bfloat16} == set(seen)


def test_kinds_of_layers():
    block = ConvBNAct(8, 8, 3, norm=torch.nn.BatchNorm2d, act="relu", groups=8)
    assert kind_of(block.conv) == "depthwise"
    assert kind_of(block.bn) == "normalisation"
    assert kind_of(torch.nn.Conv2d(8, 8, 3, groups=2)) == "convolution"
    assert kind_of(torch.nn.Conv2d(8, 8, 1)) == "pointwise"
    assert kind_of(torch.nn.Hardswish()) == "activation"
    assert kind_of(torch.nn.Dropout()) == "other"
