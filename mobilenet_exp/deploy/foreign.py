"""ONNX files that were written elsewhere: what they take, and how much they compute.

Knows no clock. Multiply-adds are counted as the papers do: convolutions and matrix products.
"""

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilenet_exp.core.errors import InputError, first_line
from mobilenet_exp.core.libraries import library
from mobilenet_exp.models.profiling import Profile

# where the second factor is among the inputs of what multiplies; `com.microsoft`'s, too
CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "FusedConv": 1}
PRODUCTS = {"MatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3, "FusedMatMul": 1}
LINEAR = {"Gemm": 1, "QGemm": 3, "FusedGemm": 1}
FACTORS = CONVOLUTIONS | PRODUCTS | LINEAR

# inputs that were not learned: statistics, and what 8 bits stand for
NOT_LEARNED = {
    "BatchNormalization": (3, 4),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QGemm": (1, 2, 4, 5, 7, 8),
    "Resize": (1, 2, 3),
}
# of convolutions whose weights were laid out anew, for one kind of processor
LAID_OUT = "com.microsoft.nchwc"


def look_into(path: str, asked: int | None, otherwise: int) -> tuple[int, Profile]:
    """Return the side in pixels that a file takes, and what it computes for one image of it.

    `asked` is the side that is wanted, `otherwise` that of a file that takes any. Raises
    InputError for a file that takes something else than images (N, 3, side, side) float32.
    """
    onnx: Any = library("onnx", "models", path)
    try:
        network = onnx.load(path)
    except Exception as error:
        raise InputError("models", path, f"cannot be opened: {first_line(error)}") from error
    graph = network.graph
    side = _side(path, graph, asked, otherwise)
    if any(node.domain == LAID_OUT for node in graph.node):
        problem = "was laid out for one processor; give the file that it was made of"
        raise InputError("models", path, problem)
    count, shapes = _shapes(path, network, side)
    madds = sum(_madds(node, shapes) for node in graph.node if node.op_type in FACTORS)
    return side, Profile(madds=madds // count, params=_num_params(onnx, graph))


def _side(path: str, graph: Any, asked: int | None, otherwise: int) -> int:
    kept = {each.name for each in graph.initializer}
    given = [each for each in graph.input if each.name not in kept]
    kinds = [each.type.tensor_type for each in given]
    # 0 where any number is taken
    sizes = [[each.dim_value for each in kind.shape.dim] for kind in kinds]
    is_image = len(given) == 1 and len(sizes[0]) == 4 and sizes[0][1] in (0, 3)
    # 1 is float32
    if not is_image or kinds[0].elem_type != 1 or sizes[0][2] != sizes[0][3]:
        found = ", ".join(f"{each.name} {size}" for each, size in zip(given, sizes, strict=True))
        problem = f"takes {found}; one float32 input (images, 3, side, side) can be timed"
        raise InputError("models", path, problem)
    own = sizes[0][2]
    if own and asked and own != asked:
        raise InputError("models", path, f"resolution: {asked} is not its side, which is {own}")
    return own or asked or otherwise


def _shapes(path: str, network: Any, side: int) -> tuple[int, dict[str, tuple[int, ...]]]:
    """Run it. Return for how many images, and the shapes of what is multiplied and comes out."""
    onnx: Any = library("onnx", "models", path)
    ort: Any = library("onnxruntime", "models", path)
    graph = network.graph
    shapes = {each.name: tuple(each.dims) for each in graph.initializer}
    (given,) = (each for each in graph.input if each.name not in shapes)
    names = [
        name
        for node in graph.node
        if node.op_type in FACTORS
        for name in (node.input[0], node.input[FACTORS[node.op_type]], node.output[0])
        if name not in shapes and name != given.name
    ]
    looked_at = onnx.ModelProto()
    looked_at.CopyFrom(network)
    del looked_at.graph.output[:]
    wanted = list(dict.fromkeys(names))
    looked_at.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    images = np.zeros((given.type.tensor_type.shape.dim[0].dim_value or 1, 3, side, side), "f")
    try:
        session = ort.InferenceSession(
            looked_at.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        found: list[NDArray[Any]] = session.run(None, {given.name: images})
    except Exception as error:
        # as many kinds as there are operators
        problem = f"cannot be run at {side} px: {first_line(error)}"
        raise InputError("models", path, problem) from error
    shapes |= {name: each.shape for name, each in zip(wanted, found, strict=True)}
    return len(images), shapes | {given.name: images.shape}


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
    # single values are constants of operators
    return sum(
        prod(each.dims)
        for each in graph.initializer
        if each.dims and each.data_type in learned and each.name not in others
    )
