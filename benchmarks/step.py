"""What each cheap lever gains on a training step, against the plain NCHW step.

python -m benchmarks.step [MODEL ...] [--resolution 224] [--batch-size 32] [--rounds 7]

Forward, backward and update on noise. Each variant lives in a process of its own, since
the C library's settings are a process's; they take turns, a step each a round, so that a
noisy machine is noisy for all. Prints the median of the rounds' ratios to plain, with
their spread, page faults a step, and the largest memory held.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from multiprocessing.connection import Connection

import torch
from torch import nn

from mobilenet_exp import build_model
from mobilenet_exp.core import console
from mobilenet_exp.machine.device import keep_freed_memory
from mobilenet_exp.training.optim import build_optimizer

# variant: memory format, whether freed memory is kept, in-place activations, optimizer args
VARIANTS = {
    "plain NCHW": ("contiguous", False, True, {}),
    "no in-place activations": ("contiguous", False, False, {}),
    "fused update": ("contiguous", False, True, {"fused": True}),
    "channels_last": ("channels_last", False, True, {}),
    "keep memory": ("contiguous", True, True, {}),
    "channels_last + keep memory": ("channels_last", True, True, {}),
}
WARMUP = 2


def _serve(pipe: Connection, variant: str, model_name: str, resolution: int, batch: int) -> None:
    """Make a step and report it, each time the other end asks."""
    layout, keeps, in_place, options = VARIANTS[variant]
    if keeps:
        keep_freed_memory()
    memory_format = getattr(torch, f"{layout}_format", torch.channels_last)
    torch.manual_seed(0)
    model = build_model(model_name).to(memory_format=memory_format).train()
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = in_place
    optimizer = build_optimizer(model, "sgd", lr=0.01, weight_decay=4e-5)
    if options:
        groups = [{k: g[k] for k in ("params", "weight_decay")} for g in optimizer.param_groups]
        optimizer = torch.optim.SGD(groups, 0.01, momentum=0.9, **options)
    images = torch.randn(batch, 3, resolution, resolution).to(memory_format=memory_format)
    labels = torch.randint(1000, (batch,))
    loss_fn = nn.CrossEntropyLoss()
    while pipe.recv():
        before = resource.getrusage(resource.RUSAGE_SELF)
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss_fn(model(images), labels).backward()
        optimizer.step()
        seconds = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_SELF)
        pipe.send((seconds, after.ru_minflt - before.ru_minflt, after.ru_maxrss / 1024))


def measure(model_name: str, resolution: int, batch: int, rounds: int) -> dict[str, list[tuple]]:
    """Return (seconds, page faults, MB held) of each variant's steps, in rounds."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for variant in VARIANTS:
        pipes[variant], theirs = context.Pipe()
        arguments = (theirs, variant, model_name, resolution, batch)
        processes.append(context.Process(target=_serve, args=arguments, daemon=True))
        processes[-1].start()
    found: dict[str, list[tuple]] = {variant: [] for variant in VARIANTS}
    for number in range(WARMUP + rounds):
        for variant, pipe in pipes.items():
            pipe.send(True)
            step = pipe.recv()
            if number >= WARMUP:
                found[variant].append(step)
    for pipe in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()
    return found


def report(title: str, found: dict[str, list[tuple]]) -> None:
    """Print a row a variant: times plain's speed, spread, ms, page faults, memory."""
    plain = [seconds for seconds, _, _ in found["plain NCHW"]]
    rows = []
    for variant, steps in found.items():
        ratios = [base / step[0] for base, step in zip(plain, steps, strict=True)]
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
    columns = ("", "x plain", "spread", "ms", "page faults", "MB held")
    console.table(title, columns, rows)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["v3_large", "v3_small", "v2", "v1"])
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    words = parser.parse_args()
    for name in words.models:
        found = measure(name, words.resolution, words.batch_size, words.rounds)
        side = words.resolution
        title = f"{name}, {side} px, batch {words.batch_size}, {torch.get_num_threads()} threads"
        report(title, found)


if __name__ == "__main__":
    main()
