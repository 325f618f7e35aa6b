"""int8 networks as torch graphs, from which files for other runtimes are written.

The scales come from images of the training data, or from quantisation-aware training. Weights
have one scale per channel, because BatchNorm's folded scales differ by orders of magnitude
between the channels of a depthwise convolution. torchao quantises, by the rules of ExecuTorch's
XNNPACK, which suit ONNX Runtime and OpenVINO, too.
"""

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from mobilenet_exp.core.libraries import clear_cache, library
from mobilenet_exp.deploy.folding import folded
from mobilenet_exp.deploy.formats import exported
from mobilenet_exp.deploy.ptq import FloatLayers, Ranges, Reconstruction, equalise
from mobilenet_exp.models.fake_quantized import (
    LAYERS,
    QMAX,
    QMIN,
    FakeQuantized,
    weight_qmax,
    weight_scale,
)

# what is needed for it beside torch
LIBRARIES = ("torchao", "executorch")

# XNNPACK multiplies steps, and takes no product that is much smaller
MIN_SCALE = 2.0**-20
# of all images that go through the network layer by layer, together
PIXELS = 128 * 224 * 224

# int8's range and type, as torch's quantise operators take them
INT8 = (QMIN, QMAX, torch.int8)


@torch.no_grad()
def from_calibration(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    weight_bits: int = 7,
    per_channel: bool = True,
    corrects: bool = True,
) -> fx.GraphModule:
    """Quantise a folded network, with scales from `batches` of images (N, 3, H, W) of one size.

    The result takes any batch size. Weights are integers of 7 or 8 bits, stored in 8; without
    `per_channel` all weights of a layer have one scale. `corrects` applies the corrections of
    `deploy.ptq`.
    """
    pt2e: Any = library("torchao.quantization.pt2e.quantize_pt2e", "int8", True)
    rules: Any = library("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", "int8", True)
    theirs = rules.get_symmetric_quantization_config(is_per_channel=per_channel)
    config = _fine(theirs, per_channel, weight_bits)
    batches = list(batches)
    graph = exported(copy.deepcopy(model), batches[0], any_number=True).module()
    some = _some(batches)
    corrects &= per_channel
    if corrects:
        equalise(graph, batches)
        layers = FloatLayers(graph, some)
    prepared = pt2e.prepare_pt2e(graph, _rules(rules.XNNPACKQuantizer, config))
    for batch in batches:
        prepared(batch)
    if corrects:
        Ranges(prepared).fit(some)
    quantised = _in_eval(pt2e.convert_pt2e(prepared))
    if corrects:
        Reconstruction(quantised, layers).run(some)
    # caches without bounds would keep what was prepared
    clear_cache("torchao.utils", "_assert_and_get_unique_device")
    clear_cache("torch.ao.quantization.fx.utils", "assert_and_get_unique_device")
    return quantised


@torch.no_grad()
def from_qat(fake_quantized: FakeQuantized, images: Tensor) -> fx.GraphModule:
    """Quantise a folded network with the ranges of its quantisation-aware training.

    It takes any number of images of this shape.
    """
    graph = exported(_Quantised(fake_quantized).eval(), images, any_number=True).module()
    _give_each_its_own(graph.graph)
    graph.recompile()
    return _in_eval(graph)


def _in_eval(graph: fx.GraphModule) -> fx.GraphModule:
    # graphs of torch.export refuse eval()
    for each in graph.modules():
        each.training = False
    return graph


def _some(batches: list[Tensor]) -> Tensor:
    """Return images from all over the batches, as many as fit the memory at once."""
    images = torch.cat(batches)
    most = max(2, PIXELS // images[0, 0].numel())
    return images[:: -(-len(images) // most)]


def _fine(config: Any, per_channel: bool, weight_bits: int) -> Any:
    """Return XNNPACK's settings with scales as small as weights and activations need.

    Its own scales are never below 2^-12: a channel with weights below 0.03 gets too few levels.
    """
    pt2e: Any = library("torchao.quantization.pt2e", "int8", True)
    of_weights = pt2e.PerChannelMinMaxObserver if per_channel else pt2e.MinMaxObserver
    # one for both sides, else an output is quantised again where it is an input
    activation = _with_observer(config.input_activation, pt2e.MinMaxObserver)
    return replace(
        config,
        input_activation=activation,
        output_activation=activation,
        weight=replace(
            _with_observer(config.weight, of_weights),
            quant_min=-weight_qmax(weight_bits),
            quant_max=weight_qmax(weight_bits),
        ),
    )


def _with_observer(spec: Any, observer: Any) -> Any:
    return replace(spec, observer_or_fake_quant_ctr=observer.with_args(eps=MIN_SCALE))


def _rules(xnnpack: type, config: Any) -> Any:
    """Return XNNPACK's rules, changed for ReLU6 and for means over an image.

    ReLU6 is fused with the convolution before it, as ReLU is: XNNPACK's own rules quantise each
    output before and after ReLU6, two more steps for ONNX Runtime. And a mean has its own
    range, not that of its input, which is several times as wide.
    """
    known: Any = library("torchao.quantization.pt2e.quantizer.quantizer", "int8", True)
    name = "executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils"
    propagate = library(name, "int8", True).propagate_annotation
    aten = torch.ops.aten
    clamps = (aten.relu6.default, aten.relu6_.default,
              aten.hardtanh.default, aten.hardtanh_.default)  # fmt: skip

    means = (aten.mean.dim, aten.adaptive_avg_pool2d.default)

    class Rules(xnnpack):
        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            model = super().annotate(model)
            for clamp in (each for each in model.graph.nodes if each.target in clamps):
                (conv,) = clamp.all_input_nodes
                if conv.target == aten.conv2d.default and len(conv.users) == 1:
                    noted = conv.meta.get(known.Q_ANNOTATION_KEY)
                    if noted is None:
                        continue
                    clamp.meta[known.Q_ANNOTATION_KEY] = known.QuantizationAnnotation(
                        output_qspec=noted.output_qspec, _annotated=True
                    )
                    noted.output_qspec = None
            propagate(model)
            for mean in (each for each in model.graph.nodes if each.target in means):
                noted = mean.meta.get(known.Q_ANNOTATION_KEY)
                if noted is not None:
                    noted.output_qspec = config.output_activation
            return model

    return Rules().set_global(config)


class _Quantised(FakeQuantized):
    """An int8 network in which each fake quantisation is a quantise and a dequantise operator."""

    def __init__(self, fake_quantized: FakeQuantized) -> None:
        ranges = {name: _QuantDequant(each) for name, each in fake_quantized.ranges.items()}
        # the training quantised the inputs of the layer scales, so these are not folded
        network = folded(fake_quantized.network, layer_scales=False)
        super().__init__(network, nn.ModuleDict(ranges), weight_bits=fake_quantized.weight_bits)
        layers = {
            name.replace(".", "/"): module
            for name, module in self.network.named_modules()
            if isinstance(module, LAYERS)
        }
        self.weights = nn.ModuleDict(
            {name: _Weight(each, self.weight_bits) for name, each in layers.items()}
        )

    def quantised_weights(self) -> dict[str, Tensor]:
        found = self.weights.items()
        return {f"{name.replace('/', '.')}.weight": weight() for name, weight in found}


class _QuantDequant(nn.Module):
    """Quantises and dequantises with the scale and zero point of a trained range."""

    def __init__(self, learned: Any) -> None:
        super().__init__()
        self.range = (learned.scale.item(), learned.zero_point.item(), *INT8)

    def enable_observer(self, _: bool) -> None:
        """Do nothing: the range is fixed."""

    def forward(self, features: Tensor) -> Tensor:
        ops = torch.ops.quantized_decomposed
        return ops.dequantize_per_tensor(
            ops.quantize_per_tensor(features, *self.range), *self.range
        )


class _Weight(nn.Module):
    """The int8 weights of a layer; they are removed from the layer itself."""

    def __init__(self, layer: nn.Module, bits: int) -> None:
        super().__init__()
        scale, qmax = weight_scale(layer.weight, bits), weight_qmax(bits)
        self.range = (0, -qmax, qmax, torch.int8)
        integers = (layer.weight / scale.view(-1, *[1] * (layer.weight.ndim - 1))).round()
        self.register_buffer("integers", integers.to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros_like(scale, dtype=torch.int32))
        layer.weight = None

    def forward(self) -> Tensor:
        ops = torch.ops.quantized_decomposed
        return ops.dequantize_per_channel(self.integers, self.scale, self.zero_point, *self.range)


def _give_each_its_own(graph: fx.Graph) -> None:
    """Give each operator its own dequantise operator, next to it, where XNNPACK looks for it."""
    ops = torch.ops.quantized_decomposed
    back = ops.dequantize_per_tensor.default
    for node in graph.find_nodes(
        op="call_function", target=torch.ops.aten.flatten.using_ints, sort=False
    ):
        given: Any = node.args[0]
        if given.target == back:
            with graph.inserting_after(node):
                whole = graph.call_function(ops.quantize_per_tensor.default)
            with graph.inserting_after(whole):
                same = graph.call_function(back, (whole, *given.args[1:]))
            node.replace_all_uses_with(same)
            whole.args = (node, *given.args[1:])
    for node in list(graph.nodes):
        for user in list(node.users)[1:] if node.target == back else ():
            with graph.inserting_after(node):
                user.replace_input_with(node, graph.node_copy(node))
