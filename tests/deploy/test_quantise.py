"""Networks in 8 bits: smaller, calibrated on the run's own images, scored like any weights."""

import pytest
import torch
from PIL import Image
from torch import nn

from mobilenet_exp import compose, train
from mobilenet_exp.core.errors import InputError, RunError
from mobilenet_exp.deploy.export import export
from mobilenet_exp.deploy.folding import folded
from mobilenet_exp.deploy.formats import FORMATS, exported, to_onnx
from mobilenet_exp.deploy.int8_check import check_answers
from mobilenet_exp.deploy.nets import build_nets, warm_batchnorm
from mobilenet_exp.deploy.ptq import equalise, round_weights
from mobilenet_exp.deploy.quantise import LIBRARIES as FOR_INT8
from mobilenet_exp.deploy.quantise import from_calibration, from_qat
from mobilenet_exp.deploy.samples import calibration_images
from mobilenet_exp.evaluation.job import evaluate
from mobilenet_exp.models.fake_quantized import FakeQuantized, weight_qmax
from mobilenet_exp.models.layers_v4 import LayerScale, MultiQueryAttention, UniversalBottleneck
from mobilenet_exp.weights.load import load_run
from mobilenet_exp.weights.runtime_files import read_exported


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on digits that has learned something, in seconds."""
    root = tmp_path_factory.mktemp("int8")
    words = ("model=v1", "model.width_mult=0.25", "train.epochs=5", "run.device=cpu")
    found = train(compose(*words, f"run.root={root}", "run.wandb=disabled"))
    return root / found["name"] / "checkpoints" / "best.pt"


@pytest.fixture(scope="module")
def learned(run, tmp_path_factory):
    """The same, after an epoch in which it learned to answer in 8 bits."""
    pytest.importorskip("torchao")
    root = tmp_path_factory.mktemp("learned")
    words = (f"weights={run}", "model=v1", "model.width_mult=0.25", "train.quantise=int8")
    words += ("train.epochs=1", "optimizer.lr=0.01", "run.device=cpu", "run.wandb=disabled")
    found = train(compose(*words, f"run.root={root}"))
    return root / found["name"] / "checkpoints" / "best.pt"


WITH_INT8 = [name for name, form in FORMATS.items() if form.has_int8]


@pytest.mark.parametrize("name", WITH_INT8)
def test_a_file_in_8_bits_is_small_and_nearly_as_good(name, run, tmp_path, capsys):
    form = FORMATS[name]
    for library in (*form.libraries, *FOR_INT8):
        pytest.importorskip(library)
    path, bits = tmp_path / f"net{form.ending}", 8 if name == "executorch" else 7
    words = (f"checkpoint={run}", f"format={name}", f"out={path}")
    found = export(compose(*words, "int8=true", "calibration_images=32", program="export"))
    assert found["agreement"] > 0.9
    # a scale that cuts what half the images have would be off by a third
    assert 1e-4 < found["difference"] < 0.15
    assert f"in int8, weights of {bits} bits" in capsys.readouterr().out
    # of 215 thousand weights
    assert path.with_suffix(".bin" if name == "openvino" else form.ending).stat().st_size < 600_000
    assert read_exported(str(path))[1].form == f"int8, weights of {bits} bits, BatchNorm folded"
    common = ("data=digits", "run.device=cpu", "run.wandb=disabled", f"run.root={tmp_path}")
    top1 = [
        evaluate(compose(*common, word, program="eval"))["top1"]
        for word in (f"checkpoint={run}", f"weights={path}")
    ]
    assert abs(top1[0] - top1[1]) < 5


@pytest.mark.parametrize("name", WITH_INT8)
def test_a_network_that_learned_to_be_rounded_is_written_as_it_learned(
    name, learned, tmp_path, capsys
):
    form = FORMATS[name]
    for library in (*form.libraries, *FOR_INT8):
        pytest.importorskip(library)
    path = tmp_path / f"net{form.ending}"
    # no data is needed for it
    words = (f"checkpoint={learned}", f"format={name}", "int8=true", f"out={path}")
    for more, key in (("calibration_images=8",) * 2, ("data=digits",) * 2):
        with pytest.raises(InputError, match=f"{key}: is not used: the ranges come from"):
            export(compose(*words, more, program="export"))
    found = export(compose(*words, program="export"))
    out = capsys.readouterr().out
    assert f"{name} in int8 (QAT), weights of 7 bits, " in out
    assert "answers to 6 photographs differ from the network's" in out
    assert read_exported(str(path))[1].form == "int8 (QAT), weights of 7 bits, BatchNorm folded"
    assert found["difference"] < 0.1
    common = ("run.device=cpu", "run.wandb=disabled", f"run.root={tmp_path}")
    top1 = [
        evaluate(compose(*common, *words, program="eval"))["top1"]
        for words in ((f"checkpoint={learned}",), ("data=digits", f"weights={path}"))
    ]
    # two of 360 images
    assert abs(top1[0] - top1[1]) < 0.6


@pytest.mark.parametrize("name", ["v1", "v2", "v3_small", "v4_conv_small"])
@torch.no_grad()
def test_the_graph_of_what_was_learned_answers_as_it_did(name):
    pytest.importorskip("torchao")
    (net,) = build_nets([{"name": name, "num_classes": 9}], 64)
    warm_batchnorm(net.model, 64)
    fake_quantized, images = FakeQuantized(net.model).train(), torch.randn(4, 3, 64, 64)
    net.model.eval()
    fake_quantized(images)
    # what is learned is no more what these images would give
    fake_quantized.ranges["stem:in"].scale.mul_(0.25)
    expected = fake_quantized.eval()(images)
    found = from_qat(fake_quantized, images)(images)
    plain = from_calibration(folded(net.model), [images], corrects=False)(images)
    errors = [((each - expected).norm() / expected.norm()).item() for each in (found, plain)]
    # what is rounded to the step beside it changes answers of random weights by so much
    assert errors[0] < 0.15
    assert errors[1] > 2 * errors[0]


@torch.no_grad()
def test_v4_s_layer_scales_and_attention_answer_as_they_learned():
    """Ranges were learned before layer scales, which are not folded for them."""
    pytest.importorskip("torchao")
    norm = nn.BatchNorm2d
    model = nn.Sequential(
        UniversalBottleneck(
            8, 16, 8, start_kernel=3, kernel=3, stride=1, act="relu", norm=norm, layer_scale=True
        ),
        MultiQueryAttention(8, heads=2, head_dim=4, kv_stride=2, norm=norm),
    )
    for module in model.modules():
        if isinstance(module, LayerScale):
            nn.init.constant_(module.gamma, 0.01)
    fake_quantized, images = FakeQuantized(model).train(), torch.randn(4, 8, 16, 16)
    for _ in range(3):
        fake_quantized(images)
    # a shortcut would hide what is beside it
    expected = fake_quantized.eval()(images) - images
    found = from_qat(fake_quantized, images)(images) - images
    assert (found - expected).norm() < 0.05 * expected.norm()
    torch.testing.assert_close(folded(model)(images), model(images), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_small_weights_have_as_many_steps_as_large_ones():
    for library in FOR_INT8:
        pytest.importorskip(library)
    layer, images = nn.Conv2d(3, 4, 3), torch.randn(4, 3, 16, 16)
    layer.weight *= torch.tensor([1.0, 1e-2, 1e-3, 10.0]).view(-1, 1, 1, 1)
    small = from_calibration(nn.Sequential(layer), [images], weight_bits=8)
    (weights,) = (each for each in small.buffers() if each.dtype == torch.int8)
    assert weights.abs().amax((1, 2, 3)).tolist() == [127] * 4


@pytest.mark.parametrize("name", ["v2", "v3_small", "torchvision:resnet18"])
def test_onnxruntime_computes_all_convolutions_in_8_bits(name, tmp_path):
    """What it cannot compute so, it does in float32, with two more steps for each: far slower."""
    for library in ("onnx", "onnxscript", "onnxruntime", *FOR_INT8):
        pytest.importorskip(library)
    import onnx
    import onnxruntime

    (net,) = build_nets([name], 64)
    images = torch.randn(2, 3, 64, 64)
    network = folded(net.model)
    if name == "v3_small":
        fake_quantized = FakeQuantized(net.model).train()
        fake_quantized(images)
        small = from_qat(fake_quantized.eval(), images)
    else:
        small = from_calibration(network, [images], corrects=False)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "net.onnx"), 3
    onnxruntime.InferenceSession(to_onnx(small, images), options)
    kinds = [each.op_type for each in onnx.load(options.optimized_model_filepath).graph.node]
    count = sum(isinstance(each, nn.Conv2d) for each in network.modules())
    assert (kinds.count("QLinearConv"), kinds.count("Conv")) == (count, 0)
    assert kinds.count("Clip") <= 1
    if name == "v2":
        # none between a convolution and the next
        assert kinds.count("QuantizeLinear") <= 2


def test_images_for_it_are_of_the_training_share_and_from_all_over_it(run):
    loaded = load_run(str(run))
    config = compose(f"checkpoint={run}", "int8=true", "calibration_images=10", program="export")
    found = calibration_images(config, loaded)
    assert [tuple(each.shape) for each in found] == [(1, 3, 32, 32)] * 10
    more = compose(f"checkpoint={run}", "int8=true", "calibration_images=5000", program="export")
    # every image that it was trained on, and none twice
    everything = calibration_images(more, loaded)
    assert len(everything) == 1437
    assert torch.equal(found[1], everything[143])
    # of a little more than half of them, from the last part, too
    some = compose(f"checkpoint={run}", "int8=true", "calibration_images=1000", program="export")
    chosen = calibration_images(some, loaded)
    assert len(chosen) == 1000
    assert torch.equal(chosen[999], everything[999 * 1437 // 1000])


def test_forms_that_have_no_8_bits_and_data_that_is_not_known_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match="int8=True: is not for torch_export; it is for onnx, o"):
        export(compose(f"checkpoint={run}", "format=torch_export", "int8=true", program="export"))
    words = ("model=v1", "model.width_mult=0.25", "model.num_classes=10", f"weights={run}")
    with pytest.raises(ValueError, match="data=null: must be given"):
        export(compose(*words, "format=executorch", "int8=true", program="export"))


def test_one_scale_for_all_channels_ruins_a_folded_depthwise_convolution(run):
    """The known trap of V1 and V2: folding a tiny variance makes one channel's weights huge."""
    pytest.importorskip("executorch")
    loaded = load_run(str(run))
    model = loaded.model
    norm = next(module for name, module in model.named_modules() if name.endswith("depthwise.bn"))
    with torch.no_grad():
        # a channel that is always zero, as some of a trained V1 are, and so varies by nothing
        model.stem.bn.weight[0] = model.stem.bn.bias[0] = 0
        norm.running_var[0], norm.eps = 1e-10, 1e-12
    config = compose(f"checkpoint={run}", "int8=true", "calibration_images=16", program="export")
    network, images = folded(model), torch.cat(calibration_images(config, loaded))
    weights = next(each for each in network.modules() if _is_depthwise(each)).weight
    assert weights[0].abs().max() > 1000 * weights[1:].abs().max()
    errors = []
    with torch.no_grad():
        expected = network(images)
        for per_channel in (True, False):
            small = from_calibration(network, [images], per_channel=per_channel, corrects=False)
            errors.append(((small(images) - expected).norm() / expected.norm()).item())
    assert errors[0] < 0.2
    assert errors[1] > 3 * errors[0]


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups > 1


def test_images_that_cannot_be_read_are_left_out_and_named_or_end_it(
    run, quick_in, tmp_path, capsys
):
    for number, name in enumerate("ab"):
        for split in ("train", "val"):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (40, 40), (60 * index, 90 * number, 0)).save(
                    folder / f"{index}.png"
                )
    whole = (tmp_path / "set/train/a/0.png").read_bytes()
    (tmp_path / "set/train/a/2.png").write_bytes(whole[:60])
    words = ("data=imagefolder", f"data.root={tmp_path}/set", "data.resolution=32")
    config = quick_in(tmp_path, *words, "data.on_bad_image=skip", "train.epochs=1")
    checkpoint = f"{config.run.root}/{train(config)['name']}/checkpoints/best.pt"
    loaded, words = load_run(checkpoint), (f"checkpoint={checkpoint}", "int8=true")
    capsys.readouterr()
    skipping = compose(*words, "data.on_bad_image=skip", program="export")
    assert len(calibration_images(skipping, loaded)) == 7
    assert "calibration: 1 image of 8 left out: a/2.png" in capsys.readouterr().out
    strict = compose(*words, "data.on_bad_image=fail", program="export")
    with pytest.raises(InputError, match=r"a/2.png.*; data.on_bad_image=skip leaves it out"):
        calibration_images(strict, loaded)


@pytest.mark.parametrize("runtime", ["onnxruntime_int8", "executorch_int8"])
@torch.no_grad()
def test_a_runtime_that_answers_otherwise_than_the_integers_is_refused(runtime):
    """As without VNNI, where sums of two products are cut off at 32,767."""
    for library in ("onnx", "onnxscript", "onnxruntime", *FOR_INT8):
        pytest.importorskip(library)
    (net,) = build_nets([{"name": "v2", "width_mult": 0.35, "num_classes": 9}], 64)
    warm_batchnorm(net.model, 64)
    network, images = folded(net.model), torch.randn(8, 3, 64, 64)
    exact = from_calibration(network, [images], weight_bits=8, corrects=False)
    check_answers(exact, exact, network, images, runtime)

    def overflowing(images: torch.Tensor) -> torch.Tensor:
        return exact(images) * torch.linspace(-1, 1, 9)

    why = "it lacks VNNI; int8_weights=7 avoids it" if "onnx" in runtime else "computes the file"
    with pytest.raises(RunError, match=f"from what its integers give.*{why}"):
        check_answers(overflowing, exact, network, images, runtime)


def test_weights_of_7_bits_leave_room_for_two_products_in_16_bits():
    """The bound that makes them right on every processor: 255 * 63 * 2 is below 2 ** 15."""
    assert 255 * weight_qmax(7) * 2 < 2**15 <= 255 * weight_qmax(8) * 2
    layer, images = nn.Conv2d(8, 4, 3), torch.randn(4, 8, 16, 16)
    for bits in (7, 8):
        small = from_calibration(nn.Sequential(layer), [images], weight_bits=bits)
        (weights,) = (each for each in small.buffers() if each.dtype == torch.int8)
        assert weights.abs().max() <= weight_qmax(bits)
        assert weights.abs().max() > 0.9 * weight_qmax(bits)


@torch.no_grad()
def test_channels_that_are_evened_out_leave_the_answers():
    (net,) = build_nets([{"name": "v2", "width_mult": 0.35, "num_classes": 9}], 64)
    warm_batchnorm(net.model, 64)
    images = torch.randn(4, 3, 64, 64)
    # a channel of the shortcuts that is a hundred times as large as the others
    norm = net.model.blocks[1].project.bn
    norm.weight[0] *= 100
    graph = exported(folded(net.model), images, any_number=True).module()
    before, scales = graph(images), [each.clone() for each in graph.parameters()]
    equalise(graph, [images])
    torch.testing.assert_close(graph(images), before, rtol=1e-3, atol=1e-4)
    changed = [not torch.equal(a, b) for a, b in zip(scales, graph.parameters(), strict=True)]
    assert sum(changed) > len(net.model.blocks)


class _OneConvolution(nn.Module):
    """A branch of one convolution, which reads what it is added to; and a number added."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)]
        self.first, self.second, self.third, self.last = layers

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.first(images)
        return self.last(self.third(features + self.second(features)) + 1.0)


@torch.no_grad()
def test_what_reads_a_sum_and_is_added_to_it_keeps_its_answers():
    images = torch.randn(2, 8, 9, 9)
    model = _OneConvolution()
    model.first.weight[0] *= 100
    graph = exported(model, images, any_number=True).module()
    before, weight = graph(images), model.first.weight.clone()
    equalise(graph, [images])
    torch.testing.assert_close(graph(images), before, rtol=1e-3, atol=1e-3)
    assert not torch.equal(weight, graph.first.weight)


class _OtherCaps(nn.Module):
    """A sum of what ReLU6 cuts off, and what is cut off elsewhere than at 0 and 6."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = nn.functional.relu6(self.first(images))
        features = features + nn.functional.relu6(self.second(images))
        return self.last(nn.functional.hardtanh(self.last(features), -1.0, 0.1))


@torch.no_grad()
def test_what_is_cut_off_elsewhere_is_left_alone():
    images = torch.randn(2, 8, 9, 9)
    model = _OtherCaps()
    for each in (model.first, model.second, model.last):
        each.weight.mul_(0.1)
        each.weight[0] *= 1000
        each.bias.zero_()
    graph = exported(model, images, any_number=True).module()
    before = [each.clone() for each in graph.parameters()]
    equalise(graph, [images])
    assert all(map(torch.equal, before, graph.parameters()))


@torch.no_grad()
def test_rounding_makes_up_for_its_errors():
    """Inputs that go together: what one weight loses, the next one gives."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(500, 1, generator=generator)
    inputs = common + 0.1 * torch.randn(500, 16, generator=generator)
    weight = torch.randn(4, 16, generator=generator)
    step, products = weight.abs().amax(1) / 7, (inputs.T @ inputs / 500)[None]
    plain = (weight / step[:, None]).round().clamp(-7, 7)
    found = round_weights(weight, step, products, 7)
    assert found.abs().max() <= 7
    assert torch.equal(found, found.round())
    errors = [
        ((inputs @ (whole * step[:, None] - weight).T) ** 2).mean().item()
        for whole in (plain, found)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_bits_of_weights_are_said_and_must_be_those_that_were_learned(run, learned, tmp_path):
    words = (f"checkpoint={learned}", "int8=true", f"out={tmp_path}/x.onnx")
    with pytest.raises(InputError, match=r"int8_weights=8: the network was trained with 7 \(train"):
        export(compose(*words, "int8_weights=8", program="export"))
    loaded = load_run(str(learned))
    assert loaded.network.weight_bits == 7
    # a run of 0.11, which says nothing of it
    state = torch.load(learned, weights_only=True)
    del state["config"]["train"]["int8_weights"]
    old = tmp_path / "old.pt"
    torch.save(state, old)
    assert load_run(str(old)).network.weight_bits == 8
    words = (f"checkpoint={old}", "int8=true", f"out={tmp_path}/x.onnx")
    with pytest.raises(InputError, match=r"int8_weights=null: the network has weights of 8"):
        export(compose(*words, program="export"))
