"""ONNX files of others: timed like any network, their multiply-adds counted."""

import pytest
import torch
from torch import nn

from mobilenet_exp import compose
from mobilenet_exp.core.errors import InputError, RunError
from mobilenet_exp.deploy.folding import folded
from mobilenet_exp.deploy.formats import to_onnx
from mobilenet_exp.deploy.job import bench
from mobilenet_exp.deploy.nets import build_nets
from mobilenet_exp.deploy.quantise import from_calibration
from mobilenet_exp.deploy.runtimes import prepare
from mobilenet_exp.machine.compute import Compute
from mobilenet_exp.models import build_model
from mobilenet_exp.models.profiling import profile_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory):
    """A network without BatchNorm, and its file."""
    (net,) = build_nets(["torchvision:squeezenet1_1"], 64)
    for module in net.model.modules():
        if isinstance(module, nn.Conv2d):
            # else they are left out
            nn.init.normal_(module.bias)
    path = tmp_path_factory.mktemp("foreign") / "theirs.onnx"
    path.write_bytes(to_onnx(net.model, torch.randn(1, 3, 64, 64)))
    return net, str(path)


@torch.no_grad()
def test_a_file_is_counted_and_answers_as_its_network(squeezenet):
    theirs, path = squeezenet
    (net,) = build_nets([path], 224)
    assert (net.title, net.side, net.own_runtime) == ("theirs.onnx 64 px", 64, "onnxruntime")
    assert net.profile == theirs.profile
    images = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(net.model(images), theirs.model(images), rtol=1e-3, atol=1e-4)


def test_a_file_in_8_bits_counts_the_same_multiply_adds(squeezenet, tmp_path):
    pytest.importorskip("executorch")
    theirs, _ = squeezenet
    images, path = torch.randn(2, 3, 64, 64), tmp_path / "small.onnx"
    small = from_calibration(folded(theirs.model), [images], corrects=False)
    path.write_bytes(to_onnx(small, images))
    (net,) = build_nets([str(path)], 224)
    assert net.profile == theirs.profile


@torch.no_grad()
@pytest.mark.parametrize("name", ["v3_small", "v4_hybrid_medium"])
def test_a_file_for_some_images_alone_counts_and_answers_alike_and_takes_no_others(name, tmp_path):
    """Squeeze-excite's and attention's products count, too."""
    images = torch.randn(4, 3, 64, 64)
    model, path = build_model(name, num_classes=7).eval(), tmp_path / "net.onnx"
    torch.onnx.export(model, (images[:2],), path, dynamo=True, verbose=False)
    (net,) = build_nets([str(path)], 64)
    assert net.title == "net.onnx 2 at once"
    assert net.profile.madds == profile_model(model, 64).madds
    compute = Compute(torch.device("cpu"), threads=1)
    found, expected = prepare(net.own_runtime, net.model, images, compute)(images), model(images)
    assert found.shape == (4, 7)
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()
    with pytest.raises(RunError, match="does not take such images: it takes 2 at once"):
        prepare(net.own_runtime, net.model, images[:3], compute)


def test_it_is_timed_beside_others(squeezenet, tmp_path, capsys):
    _, path = squeezenet
    words = (f"models=[v3_small,{path}]", "runtimes=[eager]", "batch_sizes=[2]", "resolution=64")
    words += ("warmup=1", "rounds=2", "run.device=cpu", "run.wandb=disabled")
    found = bench(compose(*words, f"run.root={tmp_path}", program="bench"))
    ours, theirs = found["rows"]
    assert (theirs["model"], theirs["runtime"]) == ("theirs.onnx", "onnxruntime")
    assert theirs["latency_ms"] > 0
    assert ours["difference"] is not None
    # there is nothing to compare it with
    assert theirs["difference"] is None
    assert "theirs.onnx" in capsys.readouterr().out


def _pooling(*shape, inputs=("images",), kind=onnx.TensorProto.FLOAT, more=()):
    """Return a network of one convolution and one mean that takes images of a shape."""
    helper, weights = onnx.helper, torch.zeros(4, 3, 1, 1).numpy()
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["images", "weights"], ["maps"]),
            helper.make_node("GlobalAveragePool", ["maps"], ["answers"]),
        ],
        "net",
        [helper.make_tensor_value_info(name, kind, shape) for name in inputs],
        [helper.make_tensor_value_info("answers", kind, None)],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    graph.node.extend(more)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_a_file_for_any_side_has_the_one_that_is_asked_for(tmp_path):
    path = tmp_path / "any.onnx"
    # -1 is no side, but other tools write it
    onnx.save(_pooling(-1, 3, "h", -1), path)
    plain, small = build_nets([str(path), {"name": str(path), "resolution": 32}], 64)
    assert (plain.side, small.side) == (64, 32)
    assert (plain.profile.madds, small.profile.madds) == (64 * 64 * 12, 32 * 32 * 12)
    assert plain.profile.params == 12


@pytest.mark.parametrize(
    ("network", "options", "problem"),
    [
        (_pooling("n", 64, 64, 3), {}, "takes images [0, 64, 64, 3]; one float32 input (images,"),
        (_pooling("n", 3, 64, 32), {}, "takes images [0, 3, 64, 32]; one float32"),
        (_pooling("n", 3, 8, 8, inputs=("images", "more")), {}, "takes images [0, 3, 8, 8], more"),
        (_pooling("n", 3, 64, 64), {"resolution": 32}, "32 is not its side, which is 64"),
        (_pooling("n", 3, 64, 64), {"width_mult": 0.5}, "width_mult is fixed by the file"),
        (
            _pooling(
                *("n", 3, 64, 64),
                more=[onnx.helper.make_node("ConvTranspose", ["maps", "weights"], ["more"])],
            ),
            {},
            "has ConvTranspose, which cannot be counted",
        ),
    ],
)
def test_what_cannot_be_timed_is_one_line(network, options, problem, tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(network, path)
    with pytest.raises(InputError, match="^models=[^\n]+$") as caught:
        build_nets([{"name": str(path), **options}], 64)
    assert problem in str(caught.value)


def test_a_file_that_cannot_be_opened_is_one_line(squeezenet, tmp_path):
    _, path = squeezenet
    broken = tmp_path / "broken.onnx"
    with open(path, "rb") as file:
        broken.write_bytes(file.read()[:1000])
    for name in (str(broken), f"{tmp_path}/none.onnx"):
        with pytest.raises(InputError, match="^models=[^\n]+$"):
            build_nets([name], 64)


def test_values_that_were_not_learned_do_not_count(tmp_path):
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 36, 2),
    )  # fmt: skip
    path = tmp_path / "net.onnx"
    words = {"dynamo": True, "verbose": False, "optimize": False}
    torch.onnx.export(layers.eval(), (torch.randn(2, 3, 8, 8),), path, **words)
    network = onnx.load(path)
    assert "BatchNormalization" in {each.op_type for each in network.graph.node}
    (net,) = build_nets([str(path)], 8)
    assert net.profile == profile_model(layers, 8)
