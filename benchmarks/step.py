"""What each lever gains on a training step on a CPU, beside timm's network and step.

python -m benchmarks.step [MODEL ...] [--resolution 224] [--batch-size 32] [--rounds 7]
                          [--variants NAME ...]

Forward, backward and update on noise. Each variant lives in a process of its own, since
the C library's settings are a process's; they take turns, a step each a round, so that a
noisy machine is noisy for all. Prints the median of the rounds' ratios to the first
variant, with their spread, page faults a step, and the largest memory held.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection

import timm
import timm.optim
import torch
from torch import nn
from torch.nn import functional

from mobilenet_exp import build_model
from mobilenet_exp.config.convert import SMALLEST_HALVED_SIDE
from mobilenet_exp.core import console
from mobilenet_exp.machine.compute import keep_freed_memory
from mobilenet_exp.machine.memory import peak_memory
from mobilenet_exp.models import layers
from mobilenet_exp.training.optim import build_optimizer


@dataclass(frozen=True)
class Variant:
    """A network's step, ours or timm's; what is on is what we do by default."""

    is_timm: bool = False
    channels_last: bool = True
    keeps_memory: bool = True
    # activations that do not copy what they were given
    own_activations: bool = True
    # the gradient of depthwise weights on maps smaller than the kernel
    own_depthwise: bool = True
    # means whose gradient is not written out
    own_mean: bool = True
    fused: bool = False
    compiled: bool = False


PLAIN = {
    "keeps_memory": False,
    "own_depthwise": False,
    "own_mean": False,
    "own_activations": False,
}
VARIANTS = {
    "timm --channels-last": Variant(is_timm=True, keeps_memory=False),
    "timm": Variant(is_timm=True, channels_last=False, keeps_memory=False),
    "plain NCHW": Variant(channels_last=False, **PLAIN),
    "channels_last alone": Variant(**PLAIN),
    "keep memory alone": Variant(**PLAIN | {"keeps_memory": True, "channels_last": False}),
    "ours, all below on": Variant(),
    "without kept memory": Variant(keeps_memory=False),
    "without own depthwise gradient": Variant(own_depthwise=False),
    "without own mean": Variant(own_mean=False),
    "without own activations": Variant(own_activations=False),
    "with a fused update": Variant(fused=True),
    "compiled": Variant(compiled=True),
}
TIMM_NAMES = {
    "v1": "mobilenetv1_100", "v2": "mobilenetv2_100", "v3_large": "mobilenetv3_large_100",
    "v3_small": "mobilenetv3_small_100", "v4_conv_small": "mobilenetv4_conv_small",
    "v4_conv_medium": "mobilenetv4_conv_medium",
}  # fmt: skip
WARMUP = 2


def _build(variant: Variant, name: str, resolution: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a network in training mode, and SGD as each side has it."""
    if variant.is_timm:
        model = timm.create_model(TIMM_NAMES[name])
        optimizer = timm.optim.create_optimizer_v2(
            model, "sgd", lr=0.01, momentum=0.9, weight_decay=4e-5
        )
        return model.train(), optimizer
    # as runs have it on small images
    model = build_model(name, stem_stride=1 if resolution < SMALLEST_HALVED_SIDE else 2).train()
    optimizer = build_optimizer(model, "sgd", lr=0.01, weight_decay=4e-5)
    if variant.fused:
        groups = [{k: g[k] for k in ("params", "weight_decay")} for g in optimizer.param_groups]
        optimizer = torch.optim.SGD(groups, 0.01, momentum=0.9, fused=True)
    return model, optimizer


def _serve(pipe: Connection, variant: Variant, name: str, resolution: int, batch: int) -> None:
    """Make a step and report it, each time the other end asks."""
    if variant.keeps_memory:
        keep_freed_memory()
    if not variant.own_depthwise:
        layers.depthwise_conv = lambda features, weight, stride: functional.conv2d(
            features, weight, None, stride, weight.shape[-1] // 2, groups=len(weight)
        )
    if not variant.own_mean:
        layers.global_mean = lambda features: features.mean((2, 3), keepdim=True)
    if not variant.own_activations:
        layers.relu6_ = partial(functional.relu6, inplace=True)
        layers.hardswish = partial(functional.hardswish, inplace=True)
    memory_format = torch.channels_last if variant.channels_last else torch.contiguous_format
    torch.manual_seed(0)
    model, optimizer = _build(variant, name, resolution)
    model = model.to(memory_format=memory_format)
    if variant.compiled:
        model.compile(dynamic=False)
    images = torch.randn(batch, 3, resolution, resolution).to(memory_format=memory_format)
    labels = torch.randint(1000, (batch,))
    loss_fn = nn.CrossEntropyLoss()
    while pipe.recv():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss_fn(model(images), labels).backward()
        optimizer.step()
        seconds = time.perf_counter() - started
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        pipe.send((seconds, faults, peak_memory(images.device)["peak_memory_mb"]))


def measure(
    model_name: str, variants: dict[str, Variant], resolution: int, batch: int, rounds: int
) -> dict[str, list[tuple]]:
    """Return (seconds, page faults, MB held) of each variant's steps, in rounds."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for title, variant in variants.items():
        pipes[title], theirs = context.Pipe()
        arguments = (theirs, variant, model_name, resolution, batch)
        processes.append(context.Process(target=_serve, args=arguments, daemon=True))
        processes[-1].start()
        # or the end of a process would not be heard
        theirs.close()
        del arguments
    found: dict[str, list[tuple]] = {title: [] for title in variants}
    for number in range(WARMUP + rounds):
        for variant, pipe in pipes.items():
            try:
                pipe.send(True)
                step = pipe.recv()
            except (EOFError, OSError) as error:
                raise SystemExit(f"error: the process of {variant!r} has ended") from error
            if number >= WARMUP:
                found[variant].append(step)
    for pipe in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()
    return found


def report(title: str, found: dict[str, list[tuple]]) -> None:
    """Print a row a variant: times the first's speed, spread, ms, page faults, memory."""
    base = next(iter(found))
    plain = [seconds for seconds, _, _ in found[base]]
    rows = []
    for variant, steps in found.items():
        ratios = [seconds / step[0] for seconds, step in zip(plain, steps, strict=True)]
        rows.append(
            (
                variant,
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f} - {max(ratios):.2f}",
                f"{1000 * statistics.median(step[0] for step in steps):.0f}",
                f"{statistics.median(step[1] for step in steps):.0f}",
                f"{max(step[2] for step in steps):.0f}",
            )
        )
    columns = ("", f"x {base}", "spread", "ms", "page faults", "MB held")
    console.table(title, columns, rows)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["v3_large", "v3_small", "v2", "v1"])
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    words = parser.parse_args()
    for name in words.models:
        # timm halves small images, too
        is_alike = name in TIMM_NAMES and words.resolution >= SMALLEST_HALVED_SIDE
        variants = {
            title: VARIANTS[title]
            for title in words.variants
            if not VARIANTS[title].is_timm or is_alike
        }
        found = measure(name, variants, words.resolution, words.batch_size, words.rounds)
        side = words.resolution
        title = f"{name}, {side} px, batch {words.batch_size}, {torch.get_num_threads()} threads"
        report(title, found)


if __name__ == "__main__":
    main()
