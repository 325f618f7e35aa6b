"""Where the time of a forward goes: each layer's, beside its multiply-adds."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mobilenet_exp.core.console import Show
from mobilenet_exp.deploy.latency import wait_for
from mobilenet_exp.machine.compute import Precision, autocast
from mobilenet_exp.models.profiling import blocks_of

# of what a network does outside its blocks, as pooling
BETWEEN = "between blocks"
KINDS = ("convolution", "pointwise", "depthwise", "linear", "normalisation", "activation", "other")


@dataclass(frozen=True)
class LayerTime:
    """One kind of work in one block: `ms` of a batch, and `madds` of one image."""

    block: str
    kind: str
    ms: float
    madds: int


def measure_layers(
    model: nn.Module,
    images: Tensor,
    *,
    rounds: int,
    progress: Show,
    precision: Precision = Precision.FLOAT32,
) -> list[LayerTime]:
    """Time the layers of a network one by one; medians, in the order of its blocks.

    `images` (N, 3, H, W) are on the network's device. `other` is what a block does outside
    layers, as adding its input, or the matrix products of attention. Waiting for each layer
    takes time of its own on a GPU.
    """
    blocks = blocks_of(model)
    leaves = {module: block for block, part in blocks.items() for module in _leaves(part)}
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    turns = range(-1, rounds)
    for turn in progress(turns, "layers", len(turns)):
        with autocast(images.device, precision):
            spent = _one_forward(model, images, blocks, leaves)
        if turn >= 0:
            for key, ms in spent.items():
                found[key].append(ms)
    madds = _madds(model, images, blocks, leaves)
    rows = [(block, kind) for block in (*blocks, BETWEEN) for kind in KINDS]
    return [
        # what is left of a block may come out below nothing
        LayerTime(*row, max(statistics.median(found[row]), 0.0), madds.get(row, 0))
        for row in rows
        if row in found
    ]


def kind_of(module: nn.Module) -> str:
    """Return what kind of work a layer does, one of KINDS."""
    if isinstance(module, nn.Conv2d):
        if module.groups > 1 and module.groups == module.in_channels:
            return "depthwise"
        return "pointwise" if module.kernel_size == (1, 1) else "convolution"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)):
        return "normalisation"
    names = ("relu", "swish", "sigmoid", "silu", "gelu", "activation")
    is_activation = any(word in type(module).__name__.lower() for word in names)
    return "activation" if is_activation else "other"


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules without submodules, except nn.Identity."""
    for each in module.modules():
        if not list(each.children()) and not isinstance(each, nn.Identity):
            yield each


@contextmanager
def _around(modules: list[nn.Module], before: Callable, after: Callable) -> Iterator[None]:
    """Call `before(module)` and `after(module)` at each of their forwards."""
    hooks = []
    for module in modules:
        hooks.append(module.register_forward_pre_hook(lambda each, *_: before(each)))
        hooks.append(module.register_forward_hook(lambda each, *_: after(each)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def _one_forward(
    model: nn.Module, images: Tensor, blocks: dict[str, nn.Module], leaves: dict[nn.Module, str]
) -> dict[tuple[str, str], float]:
    spent: dict[tuple[str, str], float] = defaultdict(float)
    names = {part: block for block, part in blocks.items() if part not in leaves}
    names[model] = BETWEEN
    started: dict[tuple[nn.Module, bool], float] = {}
    # blocks under way: a traced network calls layers without the blocks around them
    inside: list[str] = []

    def before(module: nn.Module, is_leaf: bool) -> None:
        if not is_leaf:
            inside.append(names[module])
        wait_for(images.device)
        started[module, is_leaf] = time.perf_counter()

    def after(module: nn.Module, is_leaf: bool) -> None:
        wait_for(images.device)
        ms = (time.perf_counter() - started[module, is_leaf]) * 1000
        if is_leaf:
            spent[leaves[module], kind_of(module)] += ms
            spent[inside[-1], "other"] -= ms
        else:
            spent[inside.pop(), "other"] += ms
            if inside:
                spent[inside[-1], "other"] -= ms

    with (
        _around(list(names), lambda each: before(each, False), lambda each: after(each, False)),
        _around(list(leaves), lambda each: before(each, True), lambda each: after(each, True)),
    ):
        model(images)
    return spent


def _madds(
    model: nn.Module, images: Tensor, blocks: dict[str, nn.Module], leaves: dict[nn.Module, str]
) -> dict[tuple[str, str], int]:
    """Count each layer's multiply-adds of one image, and those of a block outside layers."""
    found: dict[tuple[str, str], int] = defaultdict(int)
    names = {part: block for block, part in blocks.items() if part not in leaves}
    names[model] = BETWEEN
    counter = FlopCounterMode(display=False)
    reached: list[int] = []
    inside: list[str] = []

    def before_layer(_: nn.Module) -> None:
        reached.append(counter.get_total_flops())

    def before_block(module: nn.Module) -> None:
        inside.append(names[module])
        reached.append(counter.get_total_flops())

    def after_layer(module: nn.Module) -> None:
        counted = (counter.get_total_flops() - reached.pop()) // 2
        found[leaves[module], kind_of(module)] += counted
        found[inside[-1], "other"] -= counted

    def after_block(_: nn.Module) -> None:
        counted = (counter.get_total_flops() - reached.pop()) // 2
        found[inside.pop(), "other"] += counted
        if inside:
            found[inside[-1], "other"] -= counted

    with (
        torch.no_grad(),
        counter,
        _around(list(names), before_block, after_block),
        _around(list(leaves), before_layer, after_layer),
    ):
        model(images[:1])
    return found
