"""What grows with the batch, the side, the workers and the number of images; peak memory.

Each measurement has a process of its own, so that none inherits another's memory.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from mobilenet_exp.config.schema import DataConfig
from mobilenet_exp.data.loaders import CPU, LoaderOptions, build_loaders
from mobilenet_exp.data.sampler import BatchSampler
from mobilenet_exp.machine.compute import keep_freed_memory
from mobilenet_exp.machine.memory import peak_memory

SIDES, BATCHES = (128, 160, 192, 224, 288), (16, 32, 64, 128, 256)


def settings(root: Path, batch: int, side: int, workers: int) -> list[tuple[DataConfig, int]]:
    """Return what is measured: one thing changed at a time."""
    data = DataConfig(name="imagefolder", root=str(root), batch_size=batch, resolution=side)
    found = [(replace(data, resolution=other), workers) for other in SIDES]
    found += [(replace(data, batch_size=other), workers) for other in BATCHES if other != batch]
    return found + [(data, other) for other in range(2 * workers + 1) if other != workers]


def speeds(cases: Iterable[tuple[DataConfig, int]]) -> list[tuple[int, int, int, float, float]]:
    """Return side, batch, workers, images/s and the peak of a process's memory in MB."""
    return [
        (data.resolution, data.batch_size, workers, *_apart(_speed, data, workers))
        for data, workers in cases
    ]


def _speed(data: DataConfig, workers: int) -> tuple[float, float]:
    keep_freed_memory()
    loaders = build_loaders(data, seed=0, options=LoaderOptions(workers=workers))
    _pass(loaders.train)
    return _pass(loaders.train), peak_memory(CPU)["peak_memory_mb"]


def _pass(batches: Iterable) -> float:
    started, images = time.perf_counter(), 0
    for _, labels, *_ in batches:
        images += len(labels)
    return images / (time.perf_counter() - started)


def first_batches(sizes: Iterable[int]) -> list[tuple[int, float, float]]:
    """Return images, CPU seconds and MB of the first batch of so many images."""
    return [(size, *_apart(_first_batch, size)) for size in sizes]


def _held() -> float:
    """Return the memory that this process holds now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def _first_batch(size: int) -> tuple[float, float]:
    before, held = time.process_time(), _held()
    batches = iter(BatchSampler(size, 256, seed=0, side_at=lambda _: 224))
    next(batches)
    return time.process_time() - before, _held() - held


def _apart(measure: Callable, *words: Any) -> tuple:
    """Return what a function measures in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *words).result()
