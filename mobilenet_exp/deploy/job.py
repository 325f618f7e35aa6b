"""Runs a benchmark, from its configuration to its tables and files."""

import csv
import io
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mobilenet_exp.config.schema import BenchConfig
from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError, RunError, in_plain_words
from mobilenet_exp.core.registry import import_modules
from mobilenet_exp.core.text import plural
from mobilenet_exp.deploy import pictures, tables
from mobilenet_exp.deploy.by_layer import LayerTime, measure_layers
from mobilenet_exp.deploy.latency import measure_latency, peak_of
from mobilenet_exp.deploy.nets import Net, build_nets
from mobilenet_exp.deploy.one_call import OneCall, measure_one_call
from mobilenet_exp.deploy.runtimes import check_compute, check_runtimes, layered
from mobilenet_exp.machine.compute import Compute, keeping_threads, set_up
from mobilenet_exp.machine.lock import locked
from mobilenet_exp.machine.provenance import processor_name, versions
from mobilenet_exp.tracking.tracker import Tracker

RUNTIME_LIBRARIES = ("onnxruntime", "openvino", "executorch", "onnx", "onnxscript")


@keeping_threads()
def bench(config: BenchConfig, *, overrides: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Time the configured networks side by side; print, write and log what was found.

    A folder of its own under `run.root` holds latency.json, latency.csv and the pictures.
    Returns the content of latency.json. Raises InputError before anything is written.
    """
    import_modules(config.run.imports)
    compute, _ = set_up(config.run, half=False, leaves_busy_cores=False)
    check_runtimes(config.runtimes, compute)
    nets = build_nets(config.models, config.resolution)
    for net in nets:
        if net.own_runtime:
            check_compute("models", net.name, compute)
    layers_of = _find(nets, config.layers)
    # before what takes minutes: a folder or a W&B that is not to be had is refused now
    tracker = _tracker(config, nets, compute, overrides)
    with locked(tracker.folder), tracker:
        found = _measure(config, nets, layers_of, compute)
        _log_tables(tracker, found)
    console.line(f"{tracker.folder}: latency.json, latency.csv, pictures; {tracker.status}")
    return found


def _measure(
    config: BenchConfig, nets: list[Net], layers_of: Net | None, compute: Compute
) -> dict[str, Any]:
    """Time and print the configured networks; return the content of latency.json."""
    where, peak = _where(compute), peak_of(compute)
    rows = measure_latency(
        nets,
        config.runtimes,
        config.batch_sizes,
        warmup=config.warmup,
        rounds=config.rounds,
        compute=compute,
        peak=peak,
        progress=console.progress,
    )
    tables.print_latency(
        rows, resolution=config.resolution, rounds=config.rounds, where=where, peak=peak
    )
    calls: list[OneCall] = []
    if config.method == "one_call":
        calls = measure_one_call(nets, config.batch_sizes, compute)
        tables.print_one_call(calls, rows, where)
    layers: list[LayerTime] = []
    if layers_of:
        layers = _layers(layers_of, config, compute)
    return {
        "machine": _machine(compute) | {"peak_gmacs_per_s": peak},
        "config": asdict(config),
        "rows": rows,
        "one_call": [asdict(call) for call in calls],
        "layers_of": layers_of.title if layers_of else None,
        "layers": [asdict(layer) for layer in layers],
    }


def _find(nets: list[Net], asked: str | None) -> Net | None:
    """Return the network of this title, or the only one of this name."""
    if asked is None:
        return None
    titled = [net for net in nets if net.title == asked]
    found = titled or [net for net in nets if net.name == asked]
    titles = ", ".join(net.title for net in found or nets)
    if len(found) != 1:
        problem = f"is any of {titles}" if found else f"not in the table: {titles}"
        raise InputError("layers", asked, problem)
    if found[0].own_runtime:
        raise InputError("layers", asked, f"runs in {found[0].own_runtime}, which tells no layers")
    return found[0]


def _layers(net: Net, config: BenchConfig, compute: Compute) -> list[LayerTime]:
    """Time and print the layers of a network; none where memory does not suffice."""
    size = config.batch_sizes[0]
    try:
        images = torch.randn(size, 3, net.side, net.side, device=compute.device)
        model, images, described = layered(config.runtimes, net.model, images, compute)
        layers = measure_layers(
            model,
            images,
            rounds=config.rounds,
            progress=console.progress,
            precision=compute.precision,
        )
    except Exception as error:
        plain = in_plain_words(error)
        if not isinstance(plain, RunError):
            raise
        console.line(f"layers of {net.title}: not timed: {plain}")
        return []
    tables.print_layers(layers, f"{net.title}, batch {size}, {described}")
    return layers


def _where(compute: Compute) -> str:
    name = processor_name()
    if compute.device.type == "cuda":
        name = torch.cuda.get_device_name(compute.device)
    return f"{compute.describe()}, {name}"


def _machine(compute: Compute) -> dict[str, Any]:
    return {
        "where": _where(compute),
        "threads": compute.threads,
        "precision": str(compute.precision),
        "versions": versions(*RUNTIME_LIBRARIES),
        "date": time.strftime("%Y-%m-%d"),
    }


def _tracker(
    config: BenchConfig, nets: list[Net], compute: Compute, overrides: tuple[str, ...] | None
) -> Tracker:
    """Return the record of a benchmark, in a folder of its own."""
    return Tracker(
        _new_folder(Path(config.run.root)),
        config=asdict(replace(config, models=[str(each) for each in config.models])),
        title=f"bench, {plural(len(nets), 'network')}, {_where(compute)}",
        mode=config.run.wandb,
        project=config.run.wandb_project,
        tags=overrides or (),
        overrides=overrides,
        job_type="bench",
        group="bench",
    )


def _log_tables(tracker: Tracker, found: dict[str, Any]) -> None:
    """Write what was found, and show it in W&B."""
    tracker.write("latency.json", json.dumps(found, indent=1) + "\n")
    tracker.write("latency.csv", _csv(found["rows"]))
    columns = list(found["rows"][0])
    cells = [[row[column] for column in columns] for row in found["rows"]]
    tracker.table("bench/latency", columns, cells)
    with console.best_effort("pictures"):
        for path in _pictures(found, tracker.folder):
            tracker.picture(f"bench/{path.stem}", path)


def _new_folder(root: Path) -> Path:
    """Return a folder's name that says when, and that no other benchmark has."""
    stem = time.strftime("bench-%Y%m%d-%H%M%S")
    folder, number = root / stem, 1
    while folder.exists():
        number += 1
        folder = root / f"{stem}-{number}"
    return folder


def _csv(rows: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _pictures(found: dict[str, Any], folder: Path) -> list[Path]:
    drawn = []
    if pictures.draw_madds(found["rows"], folder / "madds.png"):
        drawn.append(folder / "madds.png")
    if pictures.draw_top1(found["rows"], folder / "top1.png"):
        drawn.append(folder / "top1.png")
    if found["layers"]:
        drawn.append(folder / "layers.png")
        layers = [LayerTime(**each) for each in found["layers"]]
        pictures.draw_layers(layers, found["layers_of"], drawn[-1])
    return drawn
