"""ONNX files that were written elsewhere: what they take, and how much they compute.

Multiply-adds are counted as the papers do: convolutions and matrix products.
"""

from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobilenet_exp.core.errors import InputError, RunError, first_line
from mobilenet_exp.core.libraries import library
from mobilenet_exp.models.profiling import Profile
from mobilenet_exp.weights.runtime_files import FileModel, Forward

# where the second factor is among the inputs of what multiplies
CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "FusedConv": 1}
PRODUCTS = {"MatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3}
LINEAR = {"Gemm": 1, "QGemm": 3, "FusedGemm": 1}
FACTORS = CONVOLUTIONS | PRODUCTS | LINEAR

# what multiplies, too, in ways that are not known here
UNCOUNTED = frozenset((
    "Attention", "ConvTranspose", "DeformConv", "DynamicQuantizeMatMul", "Einsum", "FusedMatMul",
    "GRU", "GroupQueryAttention", "If", "LSTM", "Loop", "MatMulIntegerToFloat", "MatMulNBits",
    "MultiHeadAttention", "NhwcFusedConv", "PackedAttention", "QAttention", "QLinearConvTranspose",
    "RNN", "Scan",
))  # fmt: skip
# of convolutions whose weights were laid out anew, for one kind of processor
LAID_OUT = "com.microsoft.nchwc"

# inputs that are no parameters: statistics, sizes, scales and zero points
NOT_LEARNED = {
    "BatchNormalization": (3, 4),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QGemm": (1, 2, 4, 5, 7, 8),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
}


class ForeignModel(FileModel):
    """An ONNX file for images (N, 3, side, side) float32.

    It takes `at_once` of them at once, or any number if that is 0.
    """

    def __init__(
        self, forward: Forward, path: str, side: int, at_once: int, profile: Profile
    ) -> None:
        super().__init__(forward, path)
        self.side, self.at_once, self.profile = side, at_once, profile

    def for_shape(self, shape: torch.Size, threads: int) -> FileModel:
        """Return the model itself. Raises RunError for a batch size that it does not take."""
        if self.at_once and shape[0] % self.at_once:
            raise RunError(f"it takes {self.at_once} at once")
        return self

    def forward(self, images: Tensor) -> Tensor:
        parts = images.split(self.at_once or len(images))
        return torch.cat([super(ForeignModel, self).forward(part) for part in parts])


def open_foreign(path: str, forward: Forward, asked: int | None, otherwise: int) -> ForeignModel:
    """Return the model of a file that `forward` runs, with its input size and its counts.

    `asked` is the requested side in pixels, `otherwise` the side for a file that takes any.
    Raises InputError for a file whose input is not images, or whose multiplications cannot be
    counted.
    """
    onnx: Any = library("onnx", "models", path)
    inliner: Any = library("onnx.inliner", "models", path)
    try:
        network = inliner.inline_local_functions(onnx.load(path))
    except Exception as error:
        raise InputError("models", path, f"cannot be opened: {first_line(error)}") from error
    graph = network.graph
    at_once, side = _input_of(path, graph, asked, otherwise)
    if any(node.domain == LAID_OUT for node in graph.node):
        problem = "was laid out for one processor; give the file that it was made of"
        raise InputError("models", path, problem)
    if unknown := sorted({node.op_type for node in graph.node} & UNCOUNTED):
        raise InputError("models", path, f"has {', '.join(unknown)}, which cannot be counted")
    multiplying = [node for node in graph.node if node.op_type in FACTORS]
    if not multiplying:
        raise InputError("models", path, "has no convolution and no matrix product")
    shapes = _shapes(path, network, multiplying, (at_once or 1, 3, side, side))
    madds = sum(_madds(node, shapes) for node in multiplying) // (at_once or 1)
    profile = Profile(madds=madds, params=_num_params(onnx, graph))
    return ForeignModel(forward, path, side, at_once, profile)


def _input_of(path: str, graph: Any, asked: int | None, otherwise: int) -> tuple[int, int]:
    """Return how many images it takes, 0 for any number, and their side."""
    kept = {each.name for each in graph.initializer}
    given = [each for each in graph.input if each.name not in kept]
    kinds = [each.type.tensor_type for each in given]
    # no value, or one below, where any size is taken
    sizes = [[max(each.dim_value, 0) for each in kind.shape.dim] for kind in kinds]
    is_image = len(given) == 1 and len(sizes[0]) == 4 and sizes[0][1] in (0, 3)
    own = {size for size in sizes[0][2:] if size} if is_image else set()
    # 1 is float32
    if not is_image or kinds[0].elem_type != 1 or len(own) > 1:
        found = ", ".join(f"{each.name} {size}" for each, size in zip(given, sizes, strict=True))
        problem = f"takes {found}; one float32 input (images, 3, side, side) can be timed"
        raise InputError("models", path, problem)
    side = next(iter(own), 0)
    if side and asked and side != asked:
        raise InputError("models", path, f"resolution: {asked} is not its side, which is {side}")
    return sizes[0][0], side or asked or otherwise


def _shapes(
    path: str, network: Any, multiplying: list[Any], shape: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Run the file on images of a shape; return the shapes of all factors and products."""
    onnx: Any = library("onnx", "models", path)
    ort: Any = library("onnxruntime", "models", path)
    shapes = {each.name: tuple(each.dims) for each in network.graph.initializer}
    (given,) = (each.name for each in network.graph.input if each.name not in shapes)
    shapes[given] = shape
    names = [
        name
        for node in multiplying
        for name in (node.input[0], node.input[FACTORS[node.op_type]], node.output[0])
        if name not in shapes
    ]
    wanted = list(dict.fromkeys(names))
    looked_at = onnx.ModelProto()
    looked_at.CopyFrom(network)
    del looked_at.graph.output[:]
    looked_at.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(
            looked_at.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        found: list[NDArray[Any]] = session.run(None, {given: np.zeros(shape, "f")})
    except Exception as error:
        # as many kinds as there are operators
        problem = f"cannot be run at {shape[-1]} px: {first_line(error)}"
        raise InputError("models", path, problem) from error
    return shapes | {name: each.shape for name, each in zip(wanted, found, strict=True)}


def _madds(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    """Count an operator's multiply-adds for all images that it was given."""
    first, second = shapes[node.input[0]], shapes[node.input[FACTORS[node.op_type]]]
    out = shapes[node.output[0]]
    if node.op_type in CONVOLUTIONS:
        each = prod(second[1:])
    elif node.op_type in LINEAR:
        each = prod(second) // out[-1]
    else:
        each = first[-1]
    return prod(out) * each


def _num_params(onnx: Any, graph: Any) -> int:
    """Count the values that were learned, of which some may be folded into others."""
    kinds = onnx.TensorProto
    learned = (kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE, kinds.INT8, kinds.UINT8,
               kinds.INT32)  # fmt: skip
    others = {
        node.input[index]
        for node in graph.node
        for index in NOT_LEARNED.get(node.op_type, ())
        if index < len(node.input)
    }
    constants = [node for node in graph.node if node.op_type == "Constant"]
    tensors = {each.name: each for each in graph.initializer} | {
        node.output[0]: each.t
        for node in constants
        for each in node.attribute
        if each.name == "value"
    }
    # single values are constants of operators
    return sum(
        prod(each.dims)
        for name, each in tensors.items()
        if each.dims and each.data_type in learned and name not in others
    )
