"""Images/s of the path from files to batches, beside torchvision's and timm's.

python -m benchmarks.data [--timm CHECKOUT] [--images 1024] [--rounds 5] [--out FILE.json]

Data alone: each library's loader, all ending in normalised batches, taking turns. With a
checkout of timm, whose scripts are run as they are, also evaluation and training from the
start of the process to its end, at timm's defaults and at its best flags. Then what grows:
the first batch of very many images, and memory. Prints medians with their spread.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
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

from mobilenet_exp import compose
from mobilenet_exp.config.schema import DataConfig
from mobilenet_exp.core import console
from mobilenet_exp.data.decode import decoder_words, open_image
from mobilenet_exp.data.draws import Draws
from mobilenet_exp.data.loaders import Reading, build_loaders
from mobilenet_exp.data.packing import pack
from mobilenet_exp.data.photos import find_photos
from mobilenet_exp.data.sampler import BatchSampler
from mobilenet_exp.machine.device import keep_freed_memory

ROOT = Path(__file__).resolve().parents[1]
CLASSES, SIDE = 10, 224
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


def ours(data: DataConfig, workers: int, loader: str = "threads") -> Callable[[], Iterable]:
    """Return what begins a pass over our training batches."""
    reading = Reading(workers=workers, loader=loader, reuses=True)
    loaders = build_loaders(data, seed=0, reading=reading)
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


def theirs_timm(root: Path, batch: int, workers: int) -> Callable[[], Iterable]:
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
        color_jitter=None,
        interpolation="bilinear",
        persistent_workers=True,
    )
    return lambda: loader


def alone(root: Path, batch: int, workers: int, rounds: int) -> dict[str, list[float]]:
    """Return images/s of each loader by round, all with as many workers."""
    data = DataConfig(name="imagefolder", root=str(root), batch_size=batch, resolution=SIDE)
    variants = {
        "torchvision": theirs_torchvision(root, batch, workers),
        "timm": theirs_timm(root, batch, workers),
        "ours": ours(data, workers),
        "ours, resize=exact": ours(replace(data, resize="exact"), workers),
        "ours, in processes": ours(data, workers, "processes"),
    }
    for form, title in (("jpeg", "packed at 256 px, JPEG"), ("raw", "packed at 256 px, raw")):
        out = root.parent / f"packed-{form}"
        words = (f"data.root={root}", f"out={out}", "side=256", f"form={form}")
        pack(compose("data=imagefolder", *words, program="pack"))
        variants[f"ours, {title}"] = ours(replace(data, name="packed", root=str(out)), workers)
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


def bounds(root: Path, threads: int) -> dict[str, float]:
    """Return images/s of decoding alone, whole and the average crop, by so many threads."""
    files = [path.read_bytes() for path in sorted((root / "train").rglob("*.jpg"))]
    loaders = build_loaders(
        DataConfig(name="imagefolder", root=str(root), batch_size=64, resolution=SIDE), seed=0
    )
    keys = [key for batch in loaders.sampler for key in batch]
    boxes = [Draws(key.seed).crop(HEIGHT, WIDTH, 0.08) for key in keys]

    def decode(first: int, *, whole: bool) -> None:
        for number in range(first, len(keys), threads):
            image = open_image(files[keys[number].image], ".jpg")
            image.decode(None if whole else boxes[number])

    found = {}
    for name, whole in (("whole files decoded", True), ("crops decoded", False)):
        running = [
            threading.Thread(target=decode, args=(first,), kwargs={"whole": whole})
            for first in range(threads)
        ]
        started = time.perf_counter()
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        found[name] = len(keys) / (time.perf_counter() - started)
    return found


def scripts(root: Path, checkout: Path, batch: int, workers: int, model: str) -> dict[str, list]:
    """Return the commands of whole processes: timm's at two sets of flags, and ours."""
    name = {"v3_small": "mobilenetv3_small_100", "v3_large": "mobilenetv3_large_100"}[model]
    weights = root.parent / f"{name}.pth"
    torch.save(timm.create_model(name, num_classes=CLASSES).state_dict(), weights)
    common = ["--data-dir", str(root), "--model", name, "--num-classes", str(CLASSES)]
    common += ["-b", str(batch), "-j", str(workers), "--device", "cpu"]
    scored = [*common, "--split", "val", "--checkpoint", str(weights)]
    trained = [*common, "--epochs", "1", "--opt", "sgd", "--lr", "0.05", "--aa", "",
               "--color-jitter", "0", "--train-interpolation", "bilinear",
               "--warmup-epochs", "0", "--output", str(root.parent / "timm")]  # fmt: skip
    runs = f"run.root={root.parent}/runs"
    own = [f"model={model}", "data=imagefolder", f"data.root={root}", f"data.batch_size={batch}",
           "run.wandb=disabled", "run.device=cpu", runs]  # fmt: skip
    python = sys.executable
    return {
        "timm, evaluation": [python, f"{checkout}/validate.py", *scored],
        "timm --channels-last, evaluation": [
            python, f"{checkout}/validate.py", *scored, "--channels-last",
        ],
        "ours, evaluation": [python, str(ROOT / "eval.py"), *own, f"weights={weights}"],
        "timm, training": [python, f"{checkout}/train.py", *trained],
        "timm --channels-last, training": [
            python, f"{checkout}/train.py", *trained, "--channels-last",
        ],
        "ours, training": [
            python, str(ROOT / "train.py"), *own, "train.epochs=1", "optimizer=sgd",
            "optimizer.lr=0.05", "train.precise_bn_batches=0",
        ],
    }  # fmt: skip


def whole_processes(commands: dict[str, list], rounds: int, folder: Path) -> dict[str, list[float]]:
    """Return the seconds of each command by round; each must succeed."""
    found: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds):
        for name, command in commands.items():
            words = [*command, f"train.seed={number}"] if name == "ours, training" else command
            started = time.perf_counter()
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name} failed: {done.stderr[-2000:]}")
            found[name].append(time.perf_counter() - started)
    return found


def _held() -> float:
    """Return the memory that this process holds now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def _first_batch(size: int, pipe: multiprocessing.connection.Connection) -> None:
    before, held = time.process_time(), _held()
    batches = iter(BatchSampler(size, 256, seed=0, side_at=lambda _: SIDE))
    next(batches)
    pipe.send((time.process_time() - before, _held() - held))


def growth(sizes: Iterable[int]) -> list[tuple[int, float, float]]:
    """Return images, CPU seconds and MB of the first batch, each in a process of its own."""
    found = []
    for size in sizes:
        mine, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(
            target=_first_batch, args=(size, theirs)
        )
        process.start()
        found.append((size, *mine.recv()))
        process.join()
    return found


def _rows(found: dict[str, list[float]], base: str, *, faster_is_more: bool) -> list[tuple]:
    rows = []
    for name, values in found.items():
        pairs = zip(values, found[base], strict=True)
        ratios = [a / b if faster_is_more else b / a for a, b in pairs]
        spread = f"{min(ratios):.2f} - {max(ratios):.2f}"
        middle = statistics.median(values)
        rows.append((name, f"{middle:.0f}", f"{statistics.median(ratios):.2f}", spread))
    return rows


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timm", type=Path, help="a checkout of timm, for its scripts")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="*", default=["v3_small", "v3_large"])
    parser.add_argument("--sizes", nargs="*", type=int, default=[10**3, 10**5, 10**7, 14_200_000])
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    words = parser.parse_args()
    keep_freed_memory()
    results: dict[str, object] = {"workers": words.workers, "decoder": decoder_words()}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "set"
        write_images(root, {"train": words.images, "val": words.images})
        found = alone(root, words.batch_size, words.workers, words.rounds)
        limits = bounds(root, words.workers)
        results |= {"alone": found, "bounds": limits}
        notes = [f"{name}: {value:.0f} images/s" for name, value in limits.items()]
        title = f"data alone, {words.workers} workers, {decoder_words()}"
        rows = _rows(found, "timm", faster_is_more=True)
        console.table(title, ("", "images/s", "x timm", "spread"), rows, notes)
        for model in words.models if words.timm else ():
            commands = scripts(root, words.timm, words.batch_size, words.workers, model)
            found = whole_processes(commands, max(words.rounds // 2, 1), Path(place))
            results[model] = found
            for kind in ("evaluation", "training"):
                part = {name: times for name, times in found.items() if name.endswith(kind)}
                rows = _rows(part, f"timm, {kind}", faster_is_more=False)
                title = f"{model}, {words.images} images, start to end"
                console.table(title, ("", "s", "x timm", "spread"), rows)
    grown = growth(words.sizes)
    results["first_batch"] = grown
    rows = [(f"{size:,}", f"{seconds:.2f}", f"{memory:.0f}") for size, seconds, memory in grown]
    console.table("the first batch of an epoch", ("images", "CPU s", "MB"), rows)
    if words.out:
        words.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
