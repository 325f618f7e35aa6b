"""Quantisation-aware training: int8 fake-quantised weights and activations.

`deploy/quantise.py` writes the integers into files.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.models.layers import ConvBNAct

LAYERS = (nn.Conv2d, nn.Linear)
# activations that runtimes compute in one step with the convolution before them
FUSED = (nn.ReLU, nn.ReLU6, nn.Identity)
# int8 values of an activation
QMIN, QMAX = -128, 127
# torchao's names in the state of a range, after its point's
LEAST_VALUE = ".activation_post_process.min_val"
GREATEST_VALUE = ".activation_post_process.max_val"
# weight of a batch in the moving average of a range, which adapts within tens of updates
AVERAGING = 0.1


class FakeQuantized(nn.Module):
    """A network with int8 fake quantisation in float32 (Jacob et al., arXiv:1712.05877, section 3).

    Gradients pass straight through the rounding. Weights are integers of `weight_bits`, 7
    (correct on every processor) or 8, with one scale per output channel. Folding BatchNorm
    later multiplies a channel's weights and its scale alike, so the integers stay. The input
    of each layer, its output (after BatchNorm, and after an activation that runtimes fuse) and
    the sums of shortcuts are fake-quantised, too, each with its own range: a moving average of
    the minimum and the maximum of the training batches. The network itself is not changed.
    Raises InputError, under the key `asked_by`, if torchao is missing.
    """

    def __init__(
        self,
        network: nn.Module,
        ranges: nn.ModuleDict | None = None,
        asked_by: tuple[str, str] = ("train.quantise", "int8"),
        *,
        weight_bits: int = 7,
    ) -> None:
        super().__init__()
        self.network, self.weight_bits = network, weight_bits
        # those of another network are read, not changed
        self.observes = ranges is None
        names = [name.replace(".", "/") for name, _ in _points(network)]
        self.ranges = _new_ranges(names, asked_by) if ranges is None else ranges

    def around(self, network: nn.Module) -> "FakeQuantized":
        """Return other weights of the same network, fake-quantised with this one's ranges."""
        return FakeQuantized(network, self.ranges, weight_bits=self.weight_bits)

    def forward(self, images: Tensor) -> Tensor:
        for each in self.ranges.values():
            each.enable_observer(self.observes and self.training)
        with self._quantising():
            return functional_call(self.network, self.quantised_weights(), (images,))

    def quantised_weights(self) -> dict[str, Tensor]:
        """Return the fake-quantised weights of all layers, by name."""
        return {
            f"{name}.weight": _quantised_weight(module.weight, self.weight_bits)
            for name, module in self.network.named_modules()
            if isinstance(module, LAYERS)
        }

    @contextmanager
    def _quantising(self) -> Iterator[None]:
        """Fake-quantise at all points of the network inside this context."""
        modules = dict(self.network.named_modules())
        with ExitStack() as hooks:
            for name, is_input in _points(self.network):
                path = name.rpartition(":")[0]
                module = modules[path]
                hook = _hook(self.ranges[name.replace(".", "/")], is_input, _is_last(path, module))
                add = module.register_forward_pre_hook if is_input else module.register_forward_hook
                hooks.callback(add(hook).remove)
            yield


def _points(network: nn.Module) -> Iterator[tuple[str, bool]]:
    """Return where activations are quantised, as `module:in` or `module:out`, and if it is `in`."""
    inside = set()
    for name, module in network.named_modules():
        if isinstance(module, ConvBNAct):
            inside.add(module.conv)
            # where TensorFlow's padding is, its convolution itself is not called
            yield f"{name}:in", True
            yield f"{name}.{'act' if isinstance(module.act, FUSED) else 'bn'}:out", False
        if isinstance(module, LAYERS):
            yield f"{name}:in", True
            if module not in inside:
                yield f"{name}:out", False
        if getattr(module, "has_shortcut", False):
            yield f"{name}:out", False


def _is_last(path: str, module: nn.Module) -> bool:
    """Return whether a module's output is final: no activation changes it in place later."""
    # a BatchNorm, folded away or not, is followed by an activation
    is_norm = path.rpartition(".")[2] == "bn"
    return (not is_norm and isinstance(module, FUSED)) or hasattr(module, "has_shortcut")


def _hook(fake_quantise: nn.Module, is_input: bool, is_last: bool) -> Callable:
    def before(_: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        (features,) = given
        # most layers get what came out of another one
        if getattr(features, "is_int8", False):
            return given
        features = fake_quantise(features)
        features.is_int8 = True
        return (features,)

    def after(_: nn.Module, __: Any, features: Tensor) -> Tensor:
        features = fake_quantise(features)
        if is_last:
            features.is_int8 = True
        return features

    return before if is_input else after


def _quantised_weight(weight: Tensor, bits: int) -> Tensor:
    """Fake-quantise weights (out, ...) to 255 or 127 levels, symmetric around zero."""
    scale, qmax = weight_scale(weight, bits), weight_qmax(bits)
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero_point, 0, -qmax, qmax)


def weight_qmax(bits: int) -> int:
    """Return the largest integer that a weight of so many bits is: 127, or 63."""
    return 2 ** (bits - 1) - 1


@torch.no_grad()
def weight_scale(weight: Tensor, bits: int) -> Tensor:
    """Return the scale of each output channel of weights (out, ...)."""
    scale = weight.abs().flatten(1).amax(1) / weight_qmax(bits)
    return scale.clamp_(min=torch.finfo(torch.float32).eps)


def qparams(least: Tensor, greatest: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of an int8 range.

    The range is widened to hold zero, which is exact.
    """
    below, above = least.clamp(max=0), greatest.clamp(min=0)
    scale = ((above - below) / (QMAX - QMIN)).clamp(min=torch.finfo(torch.float32).eps)
    zero = (QMIN - torch.round(below / scale)).clamp(QMIN, QMAX)
    return scale, zero.to(torch.int32)


@torch.no_grad()
def update_qparams(ranges: dict[str, Tensor]) -> None:
    """Recompute scale and zero point of ranges whose minimum or maximum has changed.

    `ranges` is the state of `FakeQuantized.ranges`, whose tensors are changed in place.
    """
    for name, least in ranges.items():
        point = name.removesuffix(LEAST_VALUE)
        if point != name:
            scale, zero = qparams(least, ranges[point + GREATEST_VALUE])
            ranges[f"{point}.scale"].copy_(scale)
            ranges[f"{point}.zero_point"].copy_(zero)


def check_device(device: torch.device) -> None:
    """Raise InputError for a device on which torch has no fake-quantisation kernels."""
    if device.type not in ("cpu", "cuda"):
        raise InputError("run.device", device.type, "has no fake quantisation; cpu and cuda have")


def _new_ranges(names: list[str], asked_by: tuple[str, str]) -> nn.ModuleDict:
    from mobilenet_exp.core.libraries import library

    pt2e: Any = library("torchao.quantization.pt2e", *asked_by)
    return nn.ModuleDict(
        {
            name: pt2e.FusedMovingAvgObsFakeQuantize(
                pt2e.MovingAverageMinMaxObserver,
                quant_min=QMIN,
                quant_max=QMAX,
                dtype=torch.int8,
                averaging_constant=AVERAGING,
                qscheme=torch.per_tensor_affine,
            )
            for name in dict.fromkeys(names)
        }
    )
