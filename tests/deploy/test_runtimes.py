"""Runtimes and folding: the same answers, from less work."""

import gc
import shutil

import pytest
import torch
from torch import nn

from mobilenet_exp.core.errors import RunError
from mobilenet_exp.deploy import runtimes
from mobilenet_exp.deploy.folding import folded
from mobilenet_exp.deploy.int8_check import check_answers
from mobilenet_exp.deploy.nets import build_nets, warm_batchnorm
from mobilenet_exp.deploy.runtimes import INT8, LIBRARIES, layered, prepare
from mobilenet_exp.machine.compute import Compute
from mobilenet_exp.models import build_model, list_models
from mobilenet_exp.models.layers import ConvBNAct
from mobilenet_exp.models.layers_v4 import LayerScale

COMPUTE = Compute(torch.device("cpu"), threads=1)


@torch.no_grad()
def _lively(model):
    """Give BatchNorm statistics that a trained network might have."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
        if isinstance(module, LayerScale):
            module.gamma.uniform_(0.2, 0.5)
    return model.eval()


@pytest.mark.parametrize("name", list_models())
def test_a_folded_network_gives_the_same_answers_without_batchnorm(name):
    model = _lively(build_model(name, width_mult=0.5 if "v4" not in name else 1.0, num_classes=7))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(2, 3, 64, 64)
    small = folded(model)
    with torch.no_grad():
        torch.testing.assert_close(small(images), model(images), rtol=1e-3, atol=1e-4)
    assert not any(isinstance(each, LayerScale) for each in small.modules())
    # V4's attention alone has one before its convolution
    left = [each for each in small.modules() if isinstance(each, ConvBNAct)]
    assert all(isinstance(each.bn, nn.Identity) for each in left)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_others_networks_are_folded_where_they_can_be():
    theirs, without = build_nets(
        ["torchvision:mobilenet_v3_small", "torchvision:squeezenet1_1"], 64
    )
    model, images = _lively(theirs.model), torch.randn(2, 3, 64, 64)
    small = folded(model)
    assert not any(isinstance(each, nn.BatchNorm2d) for each in small.modules())
    with torch.no_grad():
        torch.testing.assert_close(small(images), model(images), rtol=1e-3, atol=1e-4)
    # there is nothing to fold
    assert folded(without.model)(images).shape == (2, 1000)


def test_a_network_that_cannot_be_folded_says_why():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, images):
            return images if images.sum() > 0 else self.bn(images)

    images = torch.randn(1, 3, 8, 8)
    with pytest.raises(RunError, match="cannot be folded: torch.fx cannot trace it: "):
        prepare("folded", Branching(), images, COMPUTE)
    model, _, words = layered(["eager", "folded"], Branching(), images, COMPUTE)
    assert words.startswith("as it is: it cannot be folded: torch.fx cannot trace it")
    torch.testing.assert_close(model(images), images, atol=1e-3, rtol=1e-3)
    # nor is it taken by those that need its graph
    for runtime in ("onnxruntime", "openvino", "executorch"):
        for library in LIBRARIES[runtime]:
            pytest.importorskip(library)
        with pytest.raises(RunError, match="^does not take it: [^\n]+$"):
            prepare(runtime, Branching(), images, COMPUTE)


@pytest.mark.parametrize("runtime", ["eager", "folded", "onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["v3_small", "v4_hybrid_medium"])
def test_runtimes_answer_alike(runtime, name):
    for library in {"onnxruntime": ("onnxruntime", "onnxscript"), "openvino": ("openvino",)}.get(
        runtime, ()
    ):
        pytest.importorskip(library)
    model = _lively(build_model(name, num_classes=5))
    images = torch.randn(2, 3, 64, 64)
    forward = prepare(runtime, model, images, COMPUTE)
    with torch.inference_mode():
        torch.testing.assert_close(forward(images), model(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("runtime", [name for name in LIBRARIES if name.endswith(INT8)])
def test_runtimes_in_8_bits_are_near(runtime):
    for library in LIBRARIES[runtime]:
        pytest.importorskip(library)
    (net,) = build_nets([{"name": "v1", "width_mult": 0.25}], 64)
    warm_batchnorm(net.model, 64)
    images = torch.randn(2, 3, 64, 64)
    forward = prepare(runtime, net.model, images, COMPUTE)
    with torch.inference_mode():
        expected = net.model(images)
    off = ((forward(images) - expected).abs().max() / expected.abs().max()).item()
    # no float32's, and no other network's
    assert 1e-4 < off < 0.7
    check_answers(forward, forward.exact, net.model, images, runtime)


def test_libraries_keep_no_network_that_is_not_run_any_more():
    """Caches of theirs have no bounds: a benchmark of many networks would fill the memory."""
    for library in LIBRARIES["executorch_int8"]:
        pytest.importorskip(library)
    # there are no others of this shape
    model, images = nn.Sequential(nn.Conv2d(3, 37, 5), nn.ReLU()).eval(), torch.randn(1, 3, 16, 16)
    for runtime in ("executorch", "executorch_int8"):
        forward = prepare(runtime, model, images, COMPUTE)
        assert forward(images).shape == (1, 37, 12, 12)
        del forward
    gc.collect()
    alive = [each for each in gc.get_objects() if type(each) in (torch.Tensor, nn.Parameter)]
    assert sum(each.shape == (37, 3, 5, 5) for each in alive) == 1


def test_layers_are_those_of_the_folded_network_where_it_is_timed():
    model, images = build_model("v3_small", width_mult=0.35), torch.randn(2, 3, 32, 32)
    plain, same, words = layered(["eager"], model, images, COMPUTE)
    assert (words, same.is_contiguous()) == ("as it is", True)
    small, laid_out, words = layered(["eager", "folded"], model, images, COMPUTE)
    assert words == "BatchNorm folded"
    assert laid_out.is_contiguous(memory_format=torch.channels_last)
    counts = [
        sum(isinstance(each, nn.BatchNorm2d) for each in found.modules())
        for found in (plain, small)
    ]
    assert counts[0] > 0 == counts[1]


def test_compiled_networks_have_constant_weights_and_fused_convolutions():
    """Without, they are hardly faster than torch's operators one by one."""
    if not any(shutil.which(each) for each in ("g++", "clang++")):
        pytest.skip("there is no C++ compiler")
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN")
    model = build_model("v3_small", width_mult=0.35, num_classes=3).eval()
    images = torch.randn(1, 3, 64, 64)
    seen = torch._dynamo.utils.counters
    torch._dynamo.reset()
    seen.clear()
    forward = prepare("compiled", model, images, COMPUTE)
    assert seen["inductor"]["mkldnn_conv_weight_pack_matcher_count"] == sum(
        isinstance(each, nn.Conv2d) for each in model.modules()
    )
    assert seen["inductor"]["mkldnn_unary_fusion_matcher_count"] > 0
    with torch.inference_mode():
        torch.testing.assert_close(forward(images), model(images), rtol=1e-3, atol=1e-4)
        torch._dynamo.reset()
        # compiled anew it would be slower
        with pytest.raises(RunError, match="what was compiled is forgotten"):
            forward(images)


def test_many_networks_of_a_class_are_all_compiled(monkeypatch):
    """Past a limit of torch's its frames run as they are, and say nothing."""
    plain = torch.compile

    def traced(model, **_):
        return plain(model, backend=lambda graph, _: graph)

    monkeypatch.setattr(torch, "compile", traced)
    torch._dynamo.reset()
    images, kept = torch.randn(1, 3, 32, 32), []
    model = build_model("v3_small", width_mult=0.35, num_classes=3)
    with torch._dynamo.config.patch(recompile_limit=1), torch.inference_mode():
        for _ in range(3):
            kept.append(prepare("compiled", model, images, COMPUTE))
            assert kept[-1](images).shape == (1, 3)
        monkeypatch.setattr(runtimes, "MOST_COMPILED", 1)
        with pytest.raises(RunError, match="cannot be compiled: "):
            prepare("compiled", model, images, COMPUTE)
    torch._dynamo.reset()
