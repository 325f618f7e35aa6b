"""A network written in the form of another runtime."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mobilenet_exp.core.libraries import library
from mobilenet_exp.core.streams import silenced
from mobilenet_exp.deploy.quantise import with_nncf, with_torchao
from mobilenet_exp.weights.exported import RECORD

# images that a network in 8 bits is calibrated on, a list of batches; None: not in 8 bits
Calibration = list[Tensor] | None


class Format(NamedTuple):
    """A form of file: its ending, the libraries it needs, those for 8 bits, and what writes it.

    `write(model, images, path, record, calibration)` takes a folded network in eval mode and
    images (N, 3, H, W) as it will see them.
    """

    ending: str
    libraries: tuple[str, ...]
    for_int8: tuple[str, ...]
    write: Callable[[nn.Module, Tensor, Path, str, Calibration], None]


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


def _write_onnx(
    model: nn.Module, images: Tensor, path: Path, record: str, calibration: Calibration
) -> None:
    content = to_onnx(model, images, record)
    if calibration is not None:
        onnx: Any = library("onnx", "format", "onnx")
        quantised = with_nncf(onnx.load_from_string(content), calibration)
        content = quantised.SerializeToString()
    path.write_bytes(content)


def _write_openvino(
    model: nn.Module, images: Tensor, path: Path, record: str, calibration: Calibration
) -> None:
    """Write .xml, the network, and .bin beside it, its weights."""
    openvino: Any = library("openvino", "format", "openvino")
    network = openvino.Core().read_model(to_onnx(model, images))
    if calibration is not None:
        network = with_nncf(network, calibration)
    network.set_rt_info(record, RECORD)
    openvino.save_model(network, str(path), compress_to_fp16=False)


def _write_executorch(
    model: nn.Module, images: Tensor, path: Path, record: str, calibration: Calibration
) -> None:
    # phones look at one image
    one = images[:1]
    if calibration is not None:
        model = with_torchao(model, one, calibration)
    path.write_bytes(to_executorch(model, one, record))


def _write_torch_export(
    model: nn.Module, images: Tensor, path: Path, record: str, calibration: Calibration
) -> None:
    batch = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(model, (_two(images),), dynamic_shapes=batch)
    torch.export.save(program, str(path), extra_files={RECORD: record})


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), ("nncf",), _write_onnx),
    "openvino": Format(".xml", ("onnx", "onnxscript", "openvino"), ("nncf",), _write_openvino),
    "executorch": Format(".pte", ("executorch",), ("torchao",), _write_executorch),
    "torch_export": Format(".pt2", (), (), _write_torch_export),
}
