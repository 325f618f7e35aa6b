"""A benchmark from its configuration to its table: where the parts meet. Knows no Hydra."""

from typing import Any

from mobilenet_exp.config.schema import BenchConfig
from mobilenet_exp.core import console
from mobilenet_exp.core.registry import import_modules
from mobilenet_exp.deploy.latency import measure_latency
from mobilenet_exp.deploy.tables import print_latency
from mobilenet_exp.machine.arithmetic import Precision
from mobilenet_exp.machine.cores import flush_denormals, set_threads
from mobilenet_exp.machine.device import describe_device, select_device


def bench(config: BenchConfig) -> list[dict[str, Any]]:
    """Time the configured networks side by side and print the table; return its rows."""
    import_modules(config.run.imports)
    device = select_device(config.run.device)
    set_threads(config.run.threads)
    flush_denormals()
    rows = measure_latency(
        config.models,
        config.batch_sizes,
        resolution=config.resolution,
        warmup=config.warmup,
        rounds=config.rounds,
        device=device,
        progress=console.progress,
    )
    described = describe_device(device, 1, Precision.FLOAT32)
    print_latency(rows, config.resolution, config.rounds, described)
    return rows
