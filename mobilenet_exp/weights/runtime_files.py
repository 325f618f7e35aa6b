"""Exported files of other runtimes, opened as torch modules.

`python -m mobilenet_exp export` writes the files; each describes its network in its metadata.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobilenet_exp.config.convert import to_part
from mobilenet_exp.config.schema import ModelConfig, Preprocessing
from mobilenet_exp.core.errors import InputError, first_line
from mobilenet_exp.core.libraries import library
from mobilenet_exp.core.streams import silenced
from mobilenet_exp.models import MobileNet
from mobilenet_exp.models.variant import Variant

# name of the description in a file's own metadata
METADATA_KEY = "mobilenet_exp"

# maps images (N, 3, side, side) to answers (N, classes), both float32 on the CPU
Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ExportMetadata:
    """The metadata of an exported file; all of it can be written as JSON.

    `classes` are names by label, None if the weights have none; `names` are the names of the
    outputs, which always exist; `origin` and `digest` identify the weights of the file;
    `source` is the source of published weights' rows; `form` says how the network was
    converted, as `int8`; `made_by` has the commit and the versions that wrote the file.
    """

    model: dict[str, Any]
    num_classes: int
    preprocessing: dict[str, Any]
    # None of a network without variants
    dialect: dict[str, Any] | None
    classes: list[str] | None
    names: list[str]
    origin: str
    digest: str
    source: str | None
    form: str
    made_by: dict[str, Any]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class FileModel(nn.Module):
    """A file of another runtime as a network in eval mode, on the CPU in float32."""

    def __init__(self, forward: Forward, path: str) -> None:
        super().__init__()
        self._forward, self.path = forward, path
        self.eval()

    def for_shape(self, shape: torch.Size, threads: int) -> "FileModel":
        """Return it opened anew for images of one shape alone, where that is faster."""
        if runtime_of(self.path) != "openvino":
            return self
        forward, _ = open_openvino(self.path, "models", threads, shape)
        return FileModel(forward, self.path)

    def forward(self, images: Tensor) -> Tensor:
        answers = self._forward(images.float().cpu().contiguous())
        return answers.to(images.device)


class ExportedModel(FileModel):
    """An exported file of one of our networks.

    `like` is that network without weights, used to count it.
    """

    def __init__(
        self, forward: Forward, metadata: ExportMetadata, like: MobileNet, path: str
    ) -> None:
        super().__init__(forward, path)
        self.metadata = metadata
        self.variant = Variant(**metadata.dialect) if metadata.dialect else None
        # in a tuple, so that it is not a submodule: it has no weights to move to a device
        self._like = (like,)

    @property
    def like(self) -> MobileNet:
        return self._like[0]

    @property
    def num_classes(self) -> int:
        return self.metadata.num_classes


def is_exported(path: str) -> bool:
    """Return whether a path names a file of another runtime, by its ending."""
    return Path(path).suffix in READERS


def open_file(path: str, key: str) -> tuple[Forward, str]:
    """Open a file of another runtime; return its metadata, too, empty if it has none.

    Raises InputError, under `key`, for what it cannot be.
    """
    if not Path(path).is_file():
        raise InputError(key, path, "no such file")
    try:
        return READERS[Path(path).suffix](path, key, None)
    except InputError:
        raise
    except Exception as error:
        # each runtime fails in its own way at a file that is none of its
        raise InputError(key, path, f"cannot be opened: {first_line(error)}") from error


def read_exported(path: str, *, key: str = "weights") -> tuple[Forward, ExportMetadata]:
    """Open a file that was made of a network of ours.

    Raises InputError, under `key`, for any other.
    """
    forward, text = open_file(path, key)
    if not text:
        problem = "has no metadata of its network; `python -m mobilenet_exp export` writes one"
        raise InputError(key, path, problem)
    try:
        return forward, ExportMetadata(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise InputError(key, path, "has metadata of another version; export it anew") from error


def settings_of(metadata: ExportMetadata) -> tuple[ModelConfig, Preprocessing]:
    """Return the settings of the network and of its images that a file holds."""
    return to_part(metadata.model, ModelConfig, "model"), Preprocessing(**metadata.preprocessing)


def open_onnx(
    file: str | bytes, key: str, threads: int | None, *, is_plain: bool = False
) -> tuple[Forward, str]:
    """Open an ONNX file, or its content, in ONNX Runtime; return its metadata, too.

    Where `is_plain` its operators run as they are, none joined with another.
    """
    ort = library("onnxruntime", key, file if isinstance(file, str) else "onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    # errors alone
    options.log_severity_level = 3
    if is_plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0].name
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "")
    return lambda images: torch.from_numpy(session.run(None, {given: images.numpy()})[0]), text


def open_openvino(
    file: Any, key: str, threads: int | None, shape: torch.Size | None = None
) -> tuple[Forward, str]:
    """Open OpenVINO's .xml, the content of an ONNX file, or a network that OpenVINO has read.

    Returns its metadata, too. A fixed `shape` of the images makes it faster.
    """
    openvino = library("openvino", key, file if isinstance(file, str) else "openvino")
    core = openvino.Core()
    network = core.read_model(file) if isinstance(file, str | bytes) else file
    if shape is not None:
        network.reshape(list(shape))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
        # else it computes in bfloat16 where the CPU can
        "INFERENCE_PRECISION_HINT": "f32",
    }
    text = str(network.get_rt_info(METADATA_KEY).value) if network.has_rt_info(METADATA_KEY) else ""
    compiled = core.compile_model(network, "CPU", settings)
    return lambda images: torch.from_numpy(compiled(images.numpy())[0]), text


def open_executorch(file: str | bytes, key: str, threads: int | None) -> tuple[Forward, str]:
    """Open ExecuTorch's .pte, or its content; return its metadata, too.

    A larger batch is split into batches of the size that the file was written for; an exported
    file's is 1.
    """
    # it prints what it finds out about the processor
    with silenced():
        runtime = library("executorch.runtime", key, file)
        pool = library("executorch.extension.pybindings.portable_lib", key, file)
        pool._unsafe_reset_threadpool(threads or torch.get_num_threads())
        program = runtime.Runtime.get().load_program(file)
        network = program.load_method("forward")
    at_once = network.metadata.input_tensor_meta(0).sizes()[0]
    text = ""
    if METADATA_KEY in program.method_names:
        (letters,) = program.load_method(METADATA_KEY).execute([])
        text = bytes(letters.tolist()).decode()

    # the method looks into both and keeps neither
    held = (file, program)

    def forward(images: Tensor, held: Any = held) -> Tensor:
        parts = images.split(at_once)
        # the next call overwrites the output
        return torch.cat([network.execute([part])[0].clone() for part in parts])

    return forward, text


def open_torch_export(file: str, key: str, threads: int | None) -> tuple[Forward, str]:
    """Open torch.export's .pt2; return its metadata, too."""
    extra = {METADATA_KEY: ""}
    network = torch.export.load(file, extra_files=extra).module()
    # not the module itself: torch would look for its modes
    return lambda images: network(images), extra[METADATA_KEY]


def runtime_of(path: str) -> str:
    """Return the name of what runs a file of another runtime."""
    return {".onnx": "onnxruntime", ".xml": "openvino", ".pte": "executorch"}.get(
        Path(path).suffix, "torch_export"
    )


READERS: dict[str, Callable[[Any, str, int | None], tuple[Forward, str]]] = {
    ".onnx": open_onnx,
    ".xml": open_openvino,
    ".pte": open_executorch,
    ".pt2": open_torch_export,
}
