"""Corrections of post-training int8 quantisation, before and after the weights are rounded.

Channels that are added by one shortcut are rescaled to similar sizes (cross-layer equalisation,
Nagel et al., arXiv:1906.04721, section 4.1). Weights are rounded one input at a time, and the
inputs that follow compensate its error (GPTQ, Frantar et al., arXiv:2210.17323). Biases
compensate the mean error that remains (arXiv:1906.04721, section 4.2). All of it needs only
images, no labels and no training.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from mobilenet_exp.models.fake_quantized import QMAX, QMIN, qparams

ATEN = torch.ops.aten
CONVS = (ATEN.conv2d.default, ATEN.conv2d.padding)
LAYERS = (*CONVS, ATEN.linear.default)
ADDS = (ATEN.add.Tensor, ATEN.add_.Tensor)
# 0 to 6
CAPS = (ATEN.relu6.default, ATEN.relu6_.default, ATEN.hardtanh.default, ATEN.hardtanh_.default)
CLAMPS = (ATEN.relu.default, ATEN.relu_.default, *CAPS)
# exponent of the equalisation, 1 for equal channels: the rest of the difference stays in the
# weights that read them, which have one scale per output, not per input
EVENED = 0.5
# of the largest channel: those below are enlarged no further, as other images may wake them
SMALLEST = 0.03
# factors of minimum and maximum at which a range of activations may be clipped
CLIPPED = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4)
# fraction of the mean square of all inputs that is added to each one's, as some are always 0
DAMPING = 0.05
# inputs whose errors reach those after them together
BLOCK = 64
# images that go through a layer at once where its inputs are multiplied
AT_ONCE = 16


@torch.no_grad()
def equalise(graph: fx.GraphModule, batches: list[Tensor]) -> None:
    """Rescale channels, in place, so that the network's answers stay and int8 fits them better.

    `graph` is torch.export's of a folded network, `batches` are images (N, 3, H, W). It changes
    convolutions, and sums of them, whose outputs only convolutions, ReLU and ReLU6 read. The
    answers to these images stay; for other images ReLU6 may clip values that are larger than
    any of these in a channel that was enlarged.
    """
    streams = list(_streams(graph.graph))
    largest = _Largest(graph, streams)
    for batch in batches:
        largest.run(batch)
    for number, stream in enumerate(streams):
        size = largest.found[number].clamp(min=SMALLEST * largest.found[number].max())
        if not size.max() > 0:
            continue
        # one that reads the stream may also be added to it
        readers = {user for node in stream for user in node.users if user.target in CONVS}
        scale = (size.max() / size) ** EVENED
        for node in stream:
            if node.target in CONVS:
                _tensor(graph, node.args[1]).mul_(scale.view(-1, 1, 1, 1))
                if _bias(node) is not None:
                    _tensor(graph, _bias(node)).mul_(scale)
        for reader in readers:
            weight = _tensor(graph, reader.args[1])
            if _groups(reader) == 1:
                weight.div_(scale.view(1, -1, 1, 1))
            else:
                repeats = len(weight) // _groups(reader)
                weight.div_(scale.repeat_interleave(repeats).view(-1, 1, 1, 1))


def _streams(graph: fx.Graph) -> Iterator[set[fx.Node]]:
    """Yield values whose channels can be rescaled together: all that are added up."""
    seen: set[fx.Node] = set()
    for start in graph.nodes:
        if start.target not in CONVS or start in seen:
            continue
        stream, border, is_free = {start}, [start], True
        while border:
            node = border.pop()
            near = {user for user in node.users if user.target in (*ADDS, *CLAMPS)}
            near |= set(node.all_input_nodes) if node.target in (*ADDS, *CLAMPS) else set()
            border += near - stream
            stream |= near
        # of a sum the largest channel may lie above the cap of what is added
        targets = {node.target for node in stream}
        is_free &= targets.isdisjoint(CAPS) or targets.isdisjoint(ADDS)
        for node in stream:
            is_free &= node.target in (*CONVS, *ADDS, *CLAMPS)
            # a hardtanh of other ends
            is_free &= len(node.args) < 3 or node.target not in CAPS or node.args[1:] == (0, 6)
            # a number that is added would have to be rescaled, too
            is_free &= node.target not in ADDS or len(node.all_input_nodes) == 2
            for user in node.users:
                is_free &= user.target in (*ADDS, *CLAMPS) or _is_reader(user, node)
        seen |= stream
        if is_free:
            yield stream


def _is_reader(user: fx.Node, node: fx.Node) -> bool:
    """Return whether a value is a convolution's input, whole or channel by channel."""
    if user.target not in CONVS or user.args[0] is not node:
        return False
    return _groups(user) == 1 or user.args[1].meta["val"].shape[1] == 1


def _groups(conv: fx.Node) -> int:
    return conv.args[6] if len(conv.args) > 6 else 1


class _Largest(fx.Interpreter):
    """Notes the largest value of each channel of each stream."""

    def __init__(self, graph: fx.GraphModule, streams: list[set[fx.Node]]) -> None:
        super().__init__(graph)
        # what is clamped at once is not rounded
        self._number = {
            node: number
            for number, each in enumerate(streams)
            for node in each
            if not all(user.target in CLAMPS for user in node.users)
        }
        self.found: dict[int, Tensor] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if (number := self._number.get(node)) is not None:
            largest = value.abs().amax((0, 2, 3))
            self.found[number] = largest.maximum(self.found.get(number, largest))
        return value


class Ranges(fx.Interpreter):
    """Chooses how far to clip each range of activations, by the least mean square error.

    `prepared` is a graph of prepare_pt2e whose observers hold the minimum and the maximum over
    all images; `fit` scales these by the factor in CLIPPED that is best on some images.
    """

    def __init__(self, prepared: fx.GraphModule) -> None:
        super().__init__(prepared)
        # by observer: several values may share one, under names of their own
        self._errors: dict[nn.Module, Tensor] = {}

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Choose the range of each observer."""
        for part in images.split(AT_ONCE):
            self.run(part)
        for observer, errors in self._errors.items():
            factor = CLIPPED[int(errors.argmin())]
            observer.min_val.mul_(factor)
            observer.max_val.mul_(factor)

    def call_module(self, target: str, args: tuple, kwargs: dict) -> Any:
        observer = self.module.get_submodule(target)
        (value,) = args
        # those of weights have a range for each channel; another module is no observer
        if getattr(observer, "min_val", value).ndim == 0:
            least, greatest = observer.min_val, observer.max_val
            errors = [_error(value, least * each, greatest * each) for each in CLIPPED]
            self._errors[observer] = self._errors.get(observer, 0) + torch.stack(errors)
        return value


def _error(value: Tensor, least: Tensor, greatest: Tensor) -> Tensor:
    """Return the square error of a value in 255 steps from `least` to `greatest`."""
    scale, zero = qparams(least, greatest)
    rounded = torch.fake_quantize_per_tensor_affine(value, scale, zero, QMIN, QMAX)
    return (rounded - value).square_().sum()


class FloatLayers(fx.Interpreter):
    """The mean outputs (out,) and the weights of a network's layers in float, by name."""

    def __init__(self, graph: fx.GraphModule, images: Tensor) -> None:
        super().__init__(graph)
        self.means: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        with torch.no_grad():
            self.run(images)

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node.target in LAYERS:
            self.means[node.name] = _mean(value)
            self.weights[node.name] = _tensor(self.module, node.args[1]).clone()
        return value


class Reconstruction(fx.Interpreter):
    """Rounds a network's weights anew, and corrects its biases, layer by layer, as it runs.

    `graph` is the network in int8 after convert_pt2e, changed in place while it runs on the
    images that `layers` ran on. Each layer gets the outputs of the quantised layers before.
    """

    def __init__(self, graph: fx.GraphModule, layers: FloatLayers) -> None:
        super().__init__(graph)
        self._layers = layers

    def run_node(self, node: fx.Node) -> Any:
        if node.name not in self._layers.means:
            return super().run_node(node)
        inputs, weight, *others = self.fetch_args_kwargs_from_env(node)[0]
        whole, step, _, _, _, most, _ = node.args[1].args
        step = _tensor(self.module, step)
        rounded = round_weights(
            self._layers.weights[node.name], step, _products(node, inputs, weight), most
        )
        _tensor(self.module, whole).copy_(rounded)
        weight = rounded * step.view(-1, *[1] * (weight.ndim - 1))
        value = node.target(inputs, weight, *others)
        bias = _bias(node)
        if bias is None:
            return value
        error = _mean(value) - self._layers.means[node.name]
        _tensor(self.module, bias).sub_(error)
        return value - error.view(1, -1, *[1] * (value.ndim - 2))


def round_weights(weight: Tensor, step: Tensor, products: Tensor, most: int) -> Tensor:
    """Round weights (out, in, ...) to integers times `step` (out,), from -most to most.

    `products` (groups, K, K) are the mean products of each two of the K inputs of a group.
    The inputs that follow compensate the rounding error of an input.
    """
    groups, count = products.shape[:2]
    left = weight.reshape(groups, -1, count).double()
    steps = step.reshape(groups, -1).double()
    power = products.double().diagonal(dim1=1, dim2=2)
    damped = products.double() + torch.diag_embed(
        (DAMPING * power.mean(1, keepdim=True) + 1e-12).expand_as(power)
    )
    # the largest inputs first: most is left to make up for their errors
    order = power.argsort(1, descending=True)
    damped = damped.gather(1, order[:, :, None].expand_as(damped))
    damped = damped.gather(2, order[:, None, :].expand_as(damped))
    left = left.gather(2, order[:, None, :].expand_as(left))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True)
    whole = torch.empty_like(left)
    errors = torch.empty_like(left)
    for first in range(0, count, BLOCK):
        end = min(first + BLOCK, count)
        for index in range(first, end):
            column = left[:, :, index]
            whole[:, :, index] = (column / steps).round().clamp(-most, most)
            error = (column - whole[:, :, index] * steps) / factor[:, index, index, None]
            left[:, :, index:end] -= error[:, :, None] * factor[:, index, None, index:end]
            errors[:, :, index] = error
        left[:, :, end:] -= errors[:, :, first:end] @ factor[:, first:end, end:]
    found = torch.empty_like(whole).scatter_(2, order[:, None, :].expand_as(whole), whole)
    return found.reshape(weight.shape).to(weight.dtype)


def _products(node: fx.Node, inputs: Tensor, weight: Tensor) -> Tensor:
    """Return the mean products (groups, K, K) of a layer's inputs."""
    if node.target not in CONVS:
        rows = inputs.reshape(1, -1, inputs.shape[-1])
        return rows.mT @ rows / rows.shape[1]
    total, count = torch.zeros(()), 0
    for part in inputs.split(AT_ONCE):
        # (N, K, places), of which each group has its own
        rows = _patches(node, part, weight)
        rows = rows.view(len(part), _groups(node), -1, rows.shape[-1])
        total = total + torch.einsum("ngkp,nglp->gkl", rows, rows)
        count += len(part) * rows.shape[-1]
    return total / count


def _patches(node: fx.Node, inputs: Tensor, weight: Tensor) -> Tensor:
    """Return the inputs (N, C * kernel, places) that a convolution multiplies by its weights."""
    given = list(node.args[3:6])
    stride, padding, dilation = given + [[1, 1], [0, 0], [1, 1]][len(given) :]
    return nn.functional.unfold(inputs, weight.shape[2:], dilation, padding, stride)


def _mean(value: Tensor) -> Tensor:
    return value.mean((0, *range(2, value.ndim)))


def _bias(node: fx.Node) -> Any:
    return node.args[2] if len(node.args) > 2 else None


def _tensor(graph: Any, node: Any) -> Tensor:
    """Return the tensor of a get_attr node."""
    found = graph
    for name in node.target.split("."):
        found = getattr(found, name)
    return found
