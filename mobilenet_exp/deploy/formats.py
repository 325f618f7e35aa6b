"""A network written in the form of another runtime."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mobilenet_exp.core.libraries import clear_cache, library
from mobilenet_exp.core.streams import silenced
from mobilenet_exp.weights.runtime_files import METADATA_KEY


class Format(NamedTuple):
    """A form of file: its ending, the libraries it needs, and what writes it.

    `write(model, images, path, metadata)` takes a folded network in eval mode, or an int8 one
    where it `has_int8`, and images (N, 3, H, W) as it will see them.
    """

    ending: str
    libraries: tuple[str, ...]
    has_int8: bool
    write: Callable[[nn.Module, Tensor, Path, str], None]


def exported(model: nn.Module, images: Tensor, *, any_number: bool) -> torch.export.ExportedProgram:
    """Return torch.export's program of a network, for this batch size or for any."""
    if not any_number:
        return torch.export.export(model, (images,))
    batch = ({0: torch.export.Dim.DYNAMIC},)
    return torch.export.export(model, (_two(images),), dynamic_shapes=batch)


def to_onnx(model: nn.Module, images: Tensor, metadata: str = "") -> bytes:
    """Return a network in eval mode as an ONNX file, for any number of images of this size."""
    program = torch.onnx.export(
        model,
        (_two(images),),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        dynamo=True,
        verbose=False,
    )
    if metadata:
        program.model.metadata_props[METADATA_KEY] = metadata
    file = io.BytesIO()
    program.save(file)
    return _without_sign(file.getvalue())


def _without_sign(content: bytes) -> bytes:
    """Make an int8 network's activations 0 to 255 instead of -128 to 127.

    On x86, ONNX Runtime has convolutions for that alone, and computes others in float32.
    """
    onnx: Any = library("onnx", "format", "onnx")
    network = onnx.load_from_string(content)
    graph, kinds = network.graph, onnx.TensorProto
    signed = {each.name: each for each in graph.initializer if each.data_type == kinds.INT8}
    quantises = ("QuantizeLinear", "DequantizeLinear")
    # a layer's weights have a zero for each channel
    names = {
        name
        for node in graph.node
        if node.op_type in quantises and _is_one(signed.get(node.input[-1]))
        for name in (node.input[0], node.input[-1])
    }
    if not names:
        return content
    for each in (signed[name] for name in names & signed.keys()):
        value = onnx.numpy_helper.to_array(each).astype("int16") + 128
        each.CopyFrom(onnx.numpy_helper.from_array(value.astype("uint8"), each.name))
    kept = [each for each in graph.value_info if each.type.tensor_type.elem_type != kinds.INT8]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    return network.SerializeToString()


def _is_one(tensor: Any) -> bool:
    return tensor is not None and not tensor.dims


def _two(images: Tensor) -> Tensor:
    # a number of one is taken for a constant
    return images[:1].expand(2, -1, -1, -1).contiguous()


def to_executorch(model: nn.Module, images: Tensor, metadata: str = "") -> bytes:
    """Return a network in eval mode as ExecuTorch's .pte, for the batch size of `images`.

    It runs on XNNPACK's kernels.
    """
    with silenced():
        exir: Any = library("executorch.exir", "format", "executorch")
        name = "executorch.backends.xnnpack.partition.xnnpack_partitioner"
        partitioner = library(name, "format", "executorch").XnnpackPartitioner()
        letters = torch.tensor(list(metadata.encode()), dtype=torch.uint8)
        lowered = exir.to_edge_transform_and_lower(
            exported(model, images, any_number=False),
            partitioner=[partitioner],
            constant_methods={METADATA_KEY: letters} if metadata else None,
        )
        content = lowered.to_executorch().buffer
    # two caches without bounds would keep every network that was lowered
    FakeTensorMode.cache_clear()
    clear_cache("executorch.exir.backend.utils", "is_same_node")
    return content


def _write_onnx(model: nn.Module, images: Tensor, path: Path, metadata: str) -> None:
    path.write_bytes(to_onnx(model, images, metadata))


def _write_openvino(model: nn.Module, images: Tensor, path: Path, metadata: str) -> None:
    """Write .xml, the network, and .bin beside it, its weights."""
    openvino: Any = library("openvino", "format", "openvino")
    network = openvino.Core().read_model(to_onnx(model, images))
    network.set_rt_info(metadata, METADATA_KEY)
    openvino.save_model(network, str(path), compress_to_fp16=False)


def _write_executorch(model: nn.Module, images: Tensor, path: Path, metadata: str) -> None:
    # phones look at one image
    path.write_bytes(to_executorch(model, images[:1], metadata))


def _write_torch_export(model: nn.Module, images: Tensor, path: Path, metadata: str) -> None:
    program = exported(model, images, any_number=True)
    # torch's own writer of files ends the process where the disk is full
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={METADATA_KEY: metadata})
    path.write_bytes(content.getbuffer())


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), True, _write_onnx),
    "openvino": Format(".xml", ("onnx", "onnxscript", "openvino"), True, _write_openvino),
    "executorch": Format(".pte", ("executorch",), True, _write_executorch),
    "torch_export": Format(".pt2", (), False, _write_torch_export),
}
