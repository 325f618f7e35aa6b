"""A benchmark from its configuration to its table: where the parts meet. Knows no Hydra."""

import csv
import io
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mobilenet_exp.config.convert import to_dict
from mobilenet_exp.config.schema import BenchConfig
from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.registry import import_modules
from mobilenet_exp.core.text import plural
from mobilenet_exp.deploy import pictures, tables
from mobilenet_exp.deploy.by_layer import LayerTime, measure_layers
from mobilenet_exp.deploy.latency import measure_latency, peak_of
from mobilenet_exp.deploy.nets import Net, build_nets
from mobilenet_exp.deploy.one_call import OneCall, measure_one_call
from mobilenet_exp.deploy.runtimes import Place, check_runtimes, module_for
from mobilenet_exp.machine.arithmetic import select_precision, set_tf32
from mobilenet_exp.machine.cores import flush_denormals, keeping_threads, set_threads
from mobilenet_exp.machine.device import describe_device, processor_name, select_device
from mobilenet_exp.machine.memory import keep_freed_memory
from mobilenet_exp.machine.provenance import installed, versions
from mobilenet_exp.tracking.tracker import Tracker

RUNTIME_LIBRARIES = ("onnxruntime", "openvino", "executorch", "onnx", "onnxscript")


@keeping_threads()
def bench(config: BenchConfig, *, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Time the configured networks side by side; print, write and log what was found.

    A folder of its own under `run.root` holds latency.json, latency.csv and the pictures.
    Returns the content of latency.json. Raises InputError before anything is written.
    """
    place = _settle(config)
    nets = build_nets(config.models, config.resolution)
    layers_of = _find(nets, config.layers)
    # before what takes minutes: a folder or a W&B that is not to be had is refused now
    with _tracker(config, nets, place, overrides) as tracker:
        found = _measure(config, nets, layers_of, place)
        _record(tracker, found)
    console.line(f"{tracker.folder}: latency.json, latency.csv, pictures; {tracker.status}")
    return found


def _measure(
    config: BenchConfig, nets: list[Net], layers_of: Net | None, place: Place
) -> dict[str, Any]:
    """Time and print what is asked for; return all that is kept of it."""
    where, peak = _where(place), peak_of(place)
    rows = measure_latency(
        nets,
        config.runtimes,
        config.batch_sizes,
        warmup=config.warmup,
        rounds=config.rounds,
        place=place,
        peak=peak,
        progress=console.progress,
    )
    tables.print_latency(
        rows, resolution=config.resolution, rounds=config.rounds, where=where, peak=peak
    )
    calls: list[OneCall] = []
    if config.method == "one_call":
        calls = measure_one_call(nets, config.batch_sizes, place)
        tables.print_one_call(calls, rows, where)
    layers: list[LayerTime] = []
    if layers_of:
        layers = _layers(layers_of, config, place)
        tables.print_layers(layers, f"{layers_of.title}, batch {config.batch_sizes[0]}")
    return {
        "machine": _machine(place) | {"peak_gmacs_per_s": peak},
        "config": to_dict(config),
        "rows": rows,
        "one_call": [asdict(call) for call in calls],
        "layers_of": layers_of.title if layers_of else None,
        "layers": [asdict(layer) for layer in layers],
    }


def _settle(config: BenchConfig) -> Place:
    """Settle what is computed on, and in."""
    import_modules(config.run.imports)
    device = select_device(config.run.device)
    precision = select_precision(config.run.precision, device, is_training=False)
    set_threads(config.run.threads)
    if device.type == "cpu":
        flush_denormals()
        if config.run.keep_memory:
            keep_freed_memory()
    set_tf32(precision)
    place = Place(device, torch.get_num_threads(), precision)
    check_runtimes(config.runtimes, place)
    return place


def _find(nets: list[Net], asked: str | None) -> Net | None:
    titles = {net.title: net for net in nets} | {net.name: net for net in nets}
    if asked is not None and asked not in titles:
        raise InputError("layers", asked, f"not in the table: {', '.join(n.title for n in nets)}")
    found = titles[asked] if asked else None
    if found and found.own_runtime:
        raise InputError("layers", asked, f"runs in {found.own_runtime}, which tells no layers")
    return found


def _layers(net: Net, config: BenchConfig, place: Place) -> list[LayerTime]:
    model, images = module_for(config.runtimes, net.model, place), (config.batch_sizes[0], 3)
    pixels = torch.randn(*images, net.side, net.side, device=place.device)
    return measure_layers(model, pixels, rounds=config.rounds, progress=console.progress)


def _where(place: Place) -> str:
    name = processor_name()
    if place.device.type == "cuda":
        name = torch.cuda.get_device_name(place.device)
    return f"{describe_device(place.device, 1, place.precision)}, {name}"


def _machine(place: Place) -> dict[str, Any]:
    return {
        "where": _where(place),
        "threads": place.threads,
        "precision": str(place.precision),
        "versions": versions() | installed(RUNTIME_LIBRARIES),
        "date": time.strftime("%Y-%m-%d"),
    }


def _tracker(
    config: BenchConfig, nets: list[Net], place: Place, overrides: tuple[str, ...]
) -> Tracker:
    """Return the record of a benchmark, in a folder of its own."""
    return Tracker(
        _new_folder(Path(config.run.root)),
        config=to_dict(replace(config, models=[str(each) for each in config.models])),
        title=f"bench, {plural(len(nets), 'network')}, {_where(place)}",
        mode=config.run.wandb,
        project=config.run.wandb_project,
        tags=overrides,
        job_type="bench",
        group="bench",
    )


def _record(tracker: Tracker, found: dict[str, Any]) -> None:
    """Write what was found, and show it in W&B."""
    tracker.write("latency.json", json.dumps(found, indent=1) + "\n")
    tracker.write("latency.csv", _csv(found["rows"]))
    columns = list(found["rows"][0])
    cells = [[row[column] for column in columns] for row in found["rows"]]
    tracker.table("bench/latency", columns, cells)
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
    drawn = [folder / "madds.png"]
    pictures.draw_madds(found["rows"], drawn[0])
    if pictures.draw_top1(found["rows"], folder / "top1.png"):
        drawn.append(folder / "top1.png")
    if found["layers"]:
        drawn.append(folder / "layers.png")
        layers = [LayerTime(**each) for each in found["layers"]]
        pictures.draw_layers(layers, found["layers_of"], drawn[-1])
    return drawn
