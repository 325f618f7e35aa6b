"""A network written in the form of another runtime."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mobilenet_exp.core.streams import silenced
from mobilenet_exp.weights.exported import RECORD, library


class Format(NamedTuple):
    """A form of file: its ending, the libraries it needs, and what writes it."""

    ending: str
    libraries: tuple[str, ...]
    write: Callable[[nn.Module, Tensor, Path, str], None]


def to_onnx(model: nn.Module, images: Tensor, record: str = "") -> bytes:
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
    if record:
        program.model.metadata_props[RECORD] = record
    file = io.BytesIO()
    program.save(file)
    return file.getvalue()


def _two(images: Tensor) -> Tensor:
    # a number of one is taken for a constant
    return images[:1].expand(2, -1, -1, -1).contiguous()


def _write_onnx(model: nn.Module, images: Tensor, path: Path, record: str) -> None:
    path.write_bytes(to_onnx(model, images, record))


def _write_openvino(model: nn.Module, images: Tensor, path: Path, record: str) -> None:
    """Write .xml, the network, and .bin beside it, its weights."""
    openvino: Any = library("openvino", "format", "openvino")
    network = openvino.Core().read_model(to_onnx(model, images))
    network.set_rt_info(record, RECORD)
    openvino.save_model(network, str(path), compress_to_fp16=False)


def to_executorch(model: nn.Module, images: Tensor, record: str = "") -> bytes:
    """Return a network in eval mode as ExecuTorch's .pte, for so many images at once.

    XNNPACK's kernels compute it.
    """
    with silenced():
        exir: Any = library("executorch.exir", "format", "executorch")
        name = "executorch.backends.xnnpack.partition.xnnpack_partitioner"
        partitioner = library(name, "format", "executorch").XnnpackPartitioner()
        letters = torch.tensor(list(record.encode()), dtype=torch.uint8)
        lowered = exir.to_edge_transform_and_lower(
            torch.export.export(model, (images,)),
            partitioner=[partitioner],
            constant_methods={RECORD: letters} if record else None,
        )
        return lowered.to_executorch().buffer


def _write_executorch(model: nn.Module, images: Tensor, path: Path, record: str) -> None:
    # phones look at one image
    path.write_bytes(to_executorch(model, images[:1], record))


def _write_torch_export(model: nn.Module, images: Tensor, path: Path, record: str) -> None:
    batch = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(model, (_two(images),), dynamic_shapes=batch)
    torch.export.save(program, str(path), extra_files={RECORD: record})


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx),
    "openvino": Format(".xml", ("onnx", "onnxscript", "openvino"), _write_openvino),
    "executorch": Format(".pte", ("executorch",), _write_executorch),
    "torch_export": Format(".pt2", (), _write_torch_export),
}
