"""Images/s of the path from files to batches, beside torchvision's and timm's.

python -m benchmarks.data [--timm CHECKOUT] [--torchvision CHECKOUT] [--out FILE.json]

Data alone: each library's loader, all ending in normalised batches, taking turns with the
bounds, which only decode. With checkouts of peers also evaluation and training from the
start of the process to its end. Then what grows. Prints medians with their spread.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import timm.data
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from benchmarks.growth import first_batches, settings, speeds
from benchmarks.peers import Task, our_scripts, timm_scripts, torchvision_scripts, whole_processes
from mobilenet_exp import compose
from mobilenet_exp.config.schema import DataConfig
from mobilenet_exp.core import console
from mobilenet_exp.data.loaders import LoaderOptions, build_loaders
from mobilenet_exp.datasets.codec import Box, decoder_words
from mobilenet_exp.datasets.decode import open_image
from mobilenet_exp.datasets.packed.packing import pack
from mobilenet_exp.datasets.photos import find_photos
from mobilenet_exp.machine.compute import keep_freed_memory

CLASSES, SIDE = 10, 224
PARTS = ("alone", "end", "growth")
# as ImageNet's files are on average
WIDTH, HEIGHT, QUALITY = 500, 375, 90


def write_images(folder: Path, counts: dict[str, int]) -> None:
    """Write class folders of JPEG files: parts of real photographs, with a camera's noise."""
    random = np.random.default_rng(0)
    size = (3 * WIDTH, 3 * HEIGHT)
    photos = [Image.open(path).convert("RGB").resize(size) for path in find_photos()]
    for split, count in counts.items():
        for number in range(count):
            wide, high = (int(side * random.uniform(0.6, 1)) for side in size)
            left = random.integers(0, size[0] - wide + 1)
            top = random.integers(0, size[1] - high + 1)
            photo = photos[number % len(photos)].crop((left, top, left + wide, top + high))
            pixels = np.asarray(photo.resize((WIDTH, HEIGHT))).astype(float)
            pixels = (pixels + random.normal(0, 6, (HEIGHT, WIDTH, 1))).clip(0, 255)
            path = folder / split / f"c{number % CLASSES}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path, quality=QUALITY)


def ours(data: DataConfig, workers: int) -> Callable[[], Iterable]:
    """Return what begins a pass over our training batches."""
    loaders = build_loaders(data, seed=0, options=LoaderOptions(workers=workers))
    return lambda: loaders.train


def theirs_torchvision(root: Path, batch: int, workers: int) -> Callable[[], Iterable]:
    """Return torchvision's reference loader for classification: Pillow, in processes."""
    steps = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    images = torchvision.datasets.ImageFolder(str(root / "train"), steps)
    loader = DataLoader(
        images, batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True
    )
    return lambda: loader


def theirs_timm(
    root: Path,
    batch: int,
    workers: int,
    *,
    color_jitter: float | None = None,
    interpolation: str = "bilinear",
) -> Callable[[], Iterable]:
    """Return timm's loader at what is fastest on a CPU: its fast collate, normalising late."""
    images = timm.data.create_dataset("", root=str(root / "train"))
    loader = timm.data.create_loader(
        images,
        input_size=(3, SIDE, SIDE),
        batch_size=batch,
        is_training=True,
        use_prefetcher=True,
        num_workers=workers,
        device=torch.device("cpu"),
        color_jitter=color_jitter,
        interpolation=interpolation,
        persistent_workers=True,
    )
    return lambda: loader


def alone(root: Path, batch: int, workers: int, rounds: int) -> dict[str, list[float]]:
    """Return images/s of each loader by round, all with as many workers."""
    data = DataConfig(name="imagefolder", root=str(root), batch_size=batch, resolution=SIDE)
    variants = {
        "torchvision": theirs_torchvision(root, batch, workers),
        "timm": theirs_timm(root, batch, workers),
        "timm, its defaults": theirs_timm(
            root, batch, workers, color_jitter=0.4, interpolation="random"
        ),
        "ours": ours(data, workers),
        "ours, resize=exact": ours(replace(data, resize="exact"), workers),
    }
    for form, title in (("jpeg", "packed at 256 px, JPEG"), ("raw", "packed at 256 px, raw")):
        out = root.parent / f"packed-{form}"
        words = (f"data.root={root}", f"out={out}", "side=256", f"form={form}")
        pack(compose("data=imagefolder", *words, program="pack"))
        variants[f"ours, {title}"] = ours(replace(data, name="packed", root=str(out)), workers)
    for what in ("whole files", "crops"):
        is_whole = what == "whole files"
        variants[f"{what} decoded alone"] = bound(root, workers, whole=is_whole)
    return _interleaved(variants, rounds)


def _interleaved(variants: dict[str, Callable[[], Iterable]], rounds: int) -> dict[str, list]:
    found: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(1 + rounds):
        for name, begin in variants.items():
            started, images = time.perf_counter(), 0
            for _, labels, *_ in begin():
                images += len(labels)
            # the first round warms up
            if number:
                found[name].append(images / (time.perf_counter() - started))
    return found


def bound(root: Path, threads: int, *, whole: bool) -> Callable[[], Iterable]:
    """Return what begins to decode alone, whole files or the average crop of each."""
    files = [path.read_bytes() for path in sorted((root / "train").rglob("*.jpg"))]
    torch.manual_seed(0)
    photo = torch.empty(3, HEIGHT, WIDTH)
    params = [v2.RandomResizedCrop.get_params(photo, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in files]
    boxes = [Box(*each) for each in params]

    def decode(first: int) -> None:
        for number in range(first, len(files), threads):
            image = open_image(files[number], ".jpg")
            image.decode(None if whole else boxes[number])

    def decode_all() -> Iterable:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(decode, range(threads)))
        yield None, files

    return decode_all


def _rows(found: dict[str, list[float]], base: str, *, faster_is_more: bool) -> list[tuple]:
    rows = []
    for name, values in found.items():
        pairs = zip(values, found[base], strict=True)
        ratios = [a / b if faster_is_more else b / a for a, b in pairs]
        spread = f"{min(ratios):.2f} - {max(ratios):.2f}"
        middle = statistics.median(values)
        rows.append((name, f"{middle:.0f}", f"{statistics.median(ratios):.2f}", spread))
    return rows


def _show(title: str, unit: str, base: str, found: dict[str, list[float]]) -> None:
    rows = _rows(found, base, faster_is_more=unit == "images/s")
    console.table(title, ("", unit, f"x {base.partition(',')[0]}", "spread"), rows)


def end_to_end(words: argparse.Namespace, task: Task) -> dict[str, list[float]]:
    """Return the seconds of whole processes, of ours and of the checkouts that were named."""
    commands = our_scripts(task)
    if words.timm:
        commands = timm_scripts(task, words.timm) | commands
    if words.torchvision:
        folder = words.torchvision / "references" / "classification"
        commands |= torchvision_scripts(task, folder)
    found = whole_processes(commands, words.end_rounds, task.place)
    for kind in ("evaluation", "training"):
        part = {name: times for name, times in found.items() if name.endswith(kind)}
        base = next(iter(part))
        _show(f"{task.model}, {words.images} images, start to end", "s", base, part)
    return found


def grown(words: argparse.Namespace, root: Path) -> dict[str, list]:
    """Return what grows with batch, side, workers and the number of images."""
    cases = settings(root, words.batch_size, SIDE, words.workers)
    found = {
        "settings": speeds(cases),
        "first_batch": first_batches(words.sizes),
    }
    rows = [(*map(str, each[:3]), *(f"{value:.0f}" for value in each[3:]))
            for each in found["settings"]]  # fmt: skip
    heads = ("side", "batch", "workers", "images/s", "peak MB")
    console.table("one thing changed at a time", heads, rows)
    rows = [(f"{size:,}", f"{seconds:.2f}", f"{memory:.0f}")
            for size, seconds, memory in found["first_batch"]]  # fmt: skip
    console.table("the first batch of an epoch", ("images", "CPU s", "MB"), rows)
    return found


def read_command_line() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timm", type=Path, help="a checkout of timm, for its scripts")
    parser.add_argument("--torchvision", type=Path, help="a checkout of torchvision, likewise")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5, help="of data alone")
    parser.add_argument("--end-rounds", type=int, default=3, help="of whole processes")
    parser.add_argument("--models", nargs="*", default=["v3_small", "v3_large"])
    parser.add_argument("--sizes", nargs="*", type=int, default=[10**3, 10**5, 10**7, 14_200_000])
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    return parser.parse_args()


def main() -> None:
    """Measure what the command line asks for, and print it."""
    words = read_command_line()
    keep_freed_memory()
    results: dict[str, object] = {"workers": words.workers, "decoder": decoder_words()}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "set"
        write_images(root, {"train": words.images, "val": words.images})
        if "alone" in words.parts:
            found = alone(root, words.batch_size, words.workers, words.rounds)
            title = f"data alone, {words.workers} workers, {decoder_words()}"
            _show(title, "images/s", "timm", found)
            results["alone"] = found
        if "end" in words.parts and (words.timm or words.torchvision):
            for model in words.models:
                task = Task(root, CLASSES, words.batch_size, words.workers, model)
                results[model] = end_to_end(words, task)
        if "growth" in words.parts:
            results |= grown(words, root)
    if words.out:
        words.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
