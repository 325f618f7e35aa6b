"""What runs a network, by name. Each gives the same answers at its own speed."""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mobilenet_exp.core.errors import InputError, RunError, first_line, in_plain_words
from mobilenet_exp.core.libraries import library
from mobilenet_exp.core.registry import Registry
from mobilenet_exp.deploy.folding import folded
from mobilenet_exp.deploy.formats import to_executorch, to_onnx
from mobilenet_exp.deploy.quantise import LIBRARIES as FOR_INT8
from mobilenet_exp.deploy.quantise import from_calibration
from mobilenet_exp.machine.compute import Compute, Precision, autocast
from mobilenet_exp.weights.runtime_files import (
    FileModel,
    open_executorch,
    open_onnx,
    open_openvino,
)

RUNTIMES: Registry = Registry("runtimes")

# what runtimes need that are not torch's own
LIBRARIES = {
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
    "openvino": ("openvino", "onnx", "onnxscript"),
    "executorch": ("executorch",),
    "onnxruntime_int8": ("onnxruntime", "onnx", "onnxscript", *FOR_INT8),
    "openvino_int8": ("openvino", "onnx", "onnxscript", *FOR_INT8),
    "executorch_int8": FOR_INT8,
}
# those that launch kernels as CUDA graphs
RECORDED = ("cuda_graphs", "compiled_cuda_graphs")
# names of int8 runtimes, after the one in float32
INT8 = "_int8"

# of torch: what is not compiled yet is an error
NO_OTHER = "fail_on_recompile"
# networks of one class that are compiled side by side
MOST_COMPILED = 200

# gives the answers (N, classes) to images (N, 3, side, side) on the device
Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class InInt8:
    """An int8 forward, and the same int8 network in torch, run operator by operator."""

    forward: Forward
    exact: nn.Module

    def __call__(self, images: Tensor) -> Tensor:
        return self.forward(images)


def check_runtimes(names: list[str], compute: Compute) -> None:
    """Raise InputError for a runtime that is unknown, not installed, or not for the device."""
    for name in names:
        RUNTIMES.get(name)
        if name in RECORDED and compute.device.type != "cuda":
            raise InputError(
                "runtimes", name, f"is for CUDA devices, not for {compute.device.type}"
            )
        if name in LIBRARIES:
            check_compute("runtimes", name, compute)
            for each in LIBRARIES[name]:
                library(each, "runtimes", name)


def check_compute(key: str, value: str, compute: Compute) -> None:
    """Raise InputError unless it is a CPU in float32, as another library's runtime needs."""
    if compute.device.type != "cpu" or compute.precision is not Precision.FLOAT32:
        here = f"{compute.device.type} in {compute.precision}"
        raise InputError(key, value, f"is for a CPU in float32 here, not {here}")


def prepare(runtime: str, model: nn.Module, images: Tensor, compute: Compute) -> Forward:
    """Return a network's forward in a runtime, for images of this shape.

    The network itself is not changed. Raises RunError for one that the runtime does not take.
    """
    if isinstance(model, FileModel):
        # it has its own
        return _opened(model, images, compute)
    model = copy.deepcopy(model).to(compute.device).eval()
    try:
        with torch.no_grad():
            return RUNTIMES.get(runtime)(model, images, compute)
    except (InputError, RunError):
        raise
    except Exception as error:
        if runtime not in LIBRARIES or in_plain_words(error) is not error:
            raise
        # libraries refuse networks in as many ways as there are
        raise RunError(f"does not take it: {first_line(error)}") from error


def _opened(model: FileModel, images: Tensor, compute: Compute) -> Forward:
    try:
        return model.for_shape(images.shape, compute.threads)
    except Exception as error:
        if isinstance(error, InputError) or in_plain_words(error) is not error:
            raise
        raise RunError(f"does not take such images: {first_line(error)}") from error


def layered(
    runtimes: list[str], model: nn.Module, images: Tensor, compute: Compute
) -> tuple[nn.Module, Tensor, str]:
    """Return the network to time layer by layer, images for it, and a description.

    It is folded, in channels_last, if `folded` is among the runtimes and possible.
    """
    model = copy.deepcopy(model).to(compute.device).eval()
    if "folded" not in runtimes:
        return model, images, "as it is"
    try:
        small = _folded(model)
    except RunError as error:
        return model, images, f"as it is: it {error}"
    return small, images.to(memory_format=torch.channels_last), "BatchNorm folded"


@RUNTIMES.register("eager")
def eager(model: nn.Module, images: Tensor, compute: Compute) -> Forward:
    """Torch's operators one by one, in NCHW, as torchvision's examples run them."""
    return _in_precision(model, compute)


@RUNTIMES.register("folded")
def folded_eager(model: nn.Module, images: Tensor, compute: Compute) -> Forward:
    """The same with BatchNorm folded into the convolutions, in channels_last."""
    return _in_precision(_folded(model), compute, torch.channels_last)


@RUNTIMES.register("compiled")
def compiled(model: nn.Module, images: Tensor, compute: Compute) -> Forward:
    """Kernels that torch.compile makes of the folded network, its weights taken as constants."""
    return _compiled(model, images, compute)


@RUNTIMES.register("cuda_graphs")
def cuda_graphs(model: nn.Module, images: Tensor, compute: Compute) -> Forward:
    """The folded network's kernels recorded once and launched together."""
    run = _in_precision(_folded(model), compute, torch.channels_last, caches_weights=False)
    return _recorded(run, images, compute)


@RUNTIMES.register("compiled_cuda_graphs")
def compiled_cuda_graphs(model: nn.Module, images: Tensor, compute: Compute) -> Forward:
    """The kernels of torch.compile recorded once and launched together."""
    return _recorded(_compiled(model, images, compute), images, compute)


def _compiled(model: nn.Module, images: Tensor, compute: Compute) -> Forward:
    # it warns where there is a CUDA compiler and no GPU
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    forward = torch.compile(_folded(model), dynamic=False)
    run = _in_precision(forward, compute, torch.channels_last, caches_weights=False)
    # networks of one class share a limit, beyond which torch would run without compiling
    limits = {"recompile_limit": MOST_COMPILED, "fail_on_recompile_limit_hit": True}
    # as an option of torch.compile, weights stay what they are: torch looks while it traces, too
    constant = {"freezing": True, "cpp_wrapper": compute.device.type == "cpu"}
    try:
        with (
            torch.inference_mode(),
            torch._dynamo.config.patch(limits),
            torch._inductor.config.patch(constant),
        ):
            run(images)
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise RunError(f"cannot be compiled: {first_line(error)}") from error

    def as_compiled(images: Tensor) -> Tensor:
        # otherwise torch would recompile, without the weights as constants
        with torch.compiler.set_stance(NO_OTHER):
            try:
                return run(images)
            except RuntimeError as error:
                if NO_OTHER not in str(error):
                    raise
                problem = "what was compiled is forgotten, or was for images of another shape"
                raise RunError(f"{problem}; prepare it last") from error

    return as_compiled


def _recorded(run: Forward, images: Tensor, compute: Compute) -> Forward:
    """Record what a forward launches, for images of this shape."""
    given = images.clone()
    with torch.inference_mode():
        # the first calls choose algorithms, on a stream of their own as torch asks for
        side = torch.cuda.Stream(compute.device)
        side.wait_stream(torch.cuda.current_stream(compute.device))
        with torch.cuda.stream(side):
            for _ in range(3):
                run(given)
        torch.cuda.current_stream(compute.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            answers = run(given)

    def replay(images: Tensor) -> Tensor:
        given.copy_(images)
        graph.replay()
        return answers

    return replay


@RUNTIMES.register("onnxruntime")
def onnxruntime(model: nn.Module, images: Tensor, compute: Compute) -> Forward:
    """ONNX Runtime on the CPU."""
    file = to_onnx(_folded_if_it_can_be(model), images)
    return open_onnx(file, "runtimes", compute.threads)[0]


@RUNTIMES.register("openvino")
def openvino(model: nn.Module, images: Tensor, compute: Compute) -> Forward:
    """OpenVINO on the CPU, for the shortest time of one batch, of this shape alone."""
    file = to_onnx(_folded_if_it_can_be(model), images)
    return open_openvino(file, "runtimes", compute.threads, images.shape)[0]


@RUNTIMES.register("executorch")
def executorch(model: nn.Module, images: Tensor, compute: Compute) -> Forward:
    """ExecuTorch with XNNPACK's kernels, on the CPU."""
    file = to_executorch(_folded_if_it_can_be(model), images)
    return open_executorch(file, "runtimes", compute.threads)[0]


@RUNTIMES.register(f"onnxruntime{INT8}")
def onnxruntime_int8(model: nn.Module, images: Tensor, compute: Compute) -> Forward:
    """ONNX Runtime in int8, with scales from the images that are timed."""
    exact = _in_int8(model, images, 7)
    forward, _ = open_onnx(to_onnx(exact, images), "runtimes", compute.threads)
    return InInt8(forward, exact)


@RUNTIMES.register(f"openvino{INT8}")
def openvino_int8(model: nn.Module, images: Tensor, compute: Compute) -> Forward:
    """OpenVINO in int8, with scales from the images that are timed, of their shape alone."""
    exact = _in_int8(model, images, 7)
    forward, _ = open_openvino(to_onnx(exact, images), "runtimes", compute.threads, images.shape)
    return InInt8(forward, exact)


@RUNTIMES.register(f"executorch{INT8}")
def executorch_int8(model: nn.Module, images: Tensor, compute: Compute) -> Forward:
    """ExecuTorch in int8, with scales from the images that are timed."""
    exact = _in_int8(model, images, 8)
    forward, _ = open_executorch(to_executorch(exact, images), "runtimes", compute.threads)
    return InInt8(forward, exact)


def _in_int8(model: nn.Module, images: Tensor, weight_bits: int) -> nn.Module:
    # its speed counts, not its accuracy
    network = _folded_if_it_can_be(model)
    return from_calibration(network, [images], weight_bits=weight_bits, corrects=False)


def _folded(model: nn.Module) -> nn.Module:
    try:
        return folded(model).to(memory_format=torch.channels_last)
    except ValueError as error:
        raise RunError(f"cannot be folded: {error}") from error


def _folded_if_it_can_be(model: nn.Module) -> nn.Module:
    # these runtimes fold what they can themselves
    try:
        return folded(model)
    except ValueError:
        return model


def _in_precision(
    forward: Forward,
    compute: Compute,
    layout: torch.memory_format = torch.contiguous_format,
    *,
    caches_weights: bool = True,
) -> Forward:
    def run(images: Tensor) -> Tensor:
        with autocast(compute.device, compute.precision, caches_weights=caches_weights):
            return forward(images.to(memory_format=layout))

    return run
