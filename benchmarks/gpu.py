"""A GPU's training step beside timm's and beside what its memory allows.

python -m benchmarks.gpu [MODEL ...] [--batch-sizes 128 512 1024] [--rounds 5] [--json FILE]

Forward, backward and update of SGD, as `train.py` makes them, on noise that lies on the device;
then fed from this machine's memory (`data=noise`). Eager, compiled, and recorded as CUDA
graphs; in bfloat16 and float32; contiguous and channels_last. timm's networks take the same
step, eager and compiled. All take turns in one process, a few updates each a round. Prints
images/s (the median of the rounds, with their spread), times timm's best, the share of what the
device's memory allows (`benchmarks/traffic.py`), and the most memory held; a cell that does not
fit says so.
"""

import argparse
import contextlib
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import timm
import timm.optim
import torch
from torch import nn

from benchmarks.step import TIMM_NAMES
from benchmarks.traffic import bandwidth, bytes_per_image, wait
from mobilenet_exp import build_model, compose
from mobilenet_exp.core import console
from mobilenet_exp.core.console import no_progress
from mobilenet_exp.core.errors import InputError, RunError, in_plain_words
from mobilenet_exp.machine.compute import Precision, autocast, select_precision, set_tf32
from mobilenet_exp.training import step
from mobilenet_exp.training.step import wrap_model
from mobilenet_exp.training.train import build_state, make_updates

EXECUTIONS = ("eager", "compiled", "graphs", "compiled graphs")
# what is measured where the command line does not choose
LAYOUTS = ("contiguous", "channels_last")
PRECISIONS = ("bfloat16", "float32")
WARMUP = 5


@dataclass(frozen=True)
class Cell:
    """One way to train a network; `source` is ours, ours fed from memory, or timm."""

    source: str
    execution: str
    layout: str
    precision: str

    @property
    def describe(self) -> tuple[str, str, str, str]:
        return self.source, self.execution, self.layout, self.precision


@dataclass(frozen=True)
class Task:
    """What all cells of one table have in common."""

    model: str
    batch_size: int
    side: int
    device: torch.device
    # of a cell in a round
    updates: int


def cells(words: argparse.Namespace) -> list[Cell]:
    """Return what is measured: all of ours on noise, the best of ours fed, and timm's."""
    found = []
    for precision in words.precisions:
        for layout in words.layouts:
            found += [Cell("ours", each, layout, precision) for each in words.executions]
            peers = [each for each in words.executions if each in ("eager", "compiled")]
            found += [Cell("timm", each, layout, precision) for each in peers]
    layout, precision = words.layouts[-1], words.precisions[0]
    fed = [Cell("ours, fed", each, layout, precision) for each in words.executions]
    return found + fed


# makes so many updates
Updates = Callable[[int], None]


def prepare(cell: Cell, task: Task) -> Updates:
    """Build what a cell trains. Raises RunError or InputError where that cannot be."""
    set_tf32(select_precision(cell.precision, task.device, half=True))
    return _timm(cell, task) if cell.source == "timm" else _ours(cell, task)


def _ours(cell: Cell, task: Task) -> Updates:
    """Build a session as `train.py` does, which takes its own step."""
    config = compose(
        f"model={task.model}", "data=noise", f"data.resolution={task.side}",
        f"data.batch_size={task.batch_size}", f"data.args.num_images={100 * task.batch_size}",
        "optimizer=sgd", "run.wandb=disabled", f"run.device={task.device.type}",
        f"run.precision={cell.precision}", f"run.memory_format={cell.layout}",
        f"run.compile={'compiled' in cell.execution}",
        f"run.cuda_graphs={'graphs' in cell.execution}", "train.epochs=1000000",
    )  # fmt: skip
    session = build_state(config)
    wrap_model(session)
    step.set_training_mode(session)
    if cell.source == "ours, fed":
        fed = _for_ever(session)
        return lambda count: [next(fed) for _ in range(count)] and None
    images, labels = _noise(task, session.compute.memory_format)

    def update(count: int) -> None:
        for number in range(count):
            session.progress.update = number
            step.update(session, ((images, labels),))

    return update


def _for_ever(session) -> Iterator[None]:
    while True:
        yield from make_updates(session, no_progress)
        session.progress.epoch, session.progress.update = session.progress.epoch + 1, 0


def _timm(cell: Cell, task: Task) -> Updates:
    """Build timm's network and SGD, and its step with native AMP."""
    layout = getattr(torch, cell.layout.replace("contiguous", "contiguous_format"))
    model = timm.create_model(TIMM_NAMES[task.model]).to(task.device, memory_format=layout).train()
    optimizer = timm.optim.create_optimizer_v2(
        model, "sgd", lr=0.01, momentum=0.9, weight_decay=4e-5
    )
    forward = torch.compile(model) if cell.execution == "compiled" else model
    images, labels = _noise(task, layout)
    loss_fn, precision = nn.CrossEntropyLoss(), Precision(cell.precision)

    def update(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            with autocast(task.device, precision):
                loss = loss_fn(forward(images), labels)
            loss.backward()
            optimizer.step()

    return update


def _noise(task: Task, layout: torch.memory_format) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (task.batch_size, 3, task.side, task.side)
    images = torch.randn(shape, device=task.device).to(memory_format=layout)
    return images, torch.randint(1000, (task.batch_size,), device=task.device)


def measure(task: Task, wanted: list[Cell], rounds: int) -> dict[Cell, dict]:
    """Return images/s by round, and MB held, of each cell; or why there are none."""
    found: dict[Cell, dict] = {}
    ready: dict[Cell, Updates] = {}
    for cell in wanted:
        with _noted(cell, found, ready):
            before = _begin_to_count(task.device)
            ready[cell] = prepare(cell, task)
            ready[cell](WARMUP)
            wait(task.device)
            found[cell] = {"images_per_s": [], "mb": _most_held(task.device) - before}
        gc.collect()
        if task.device.type == "cuda":
            torch.cuda.empty_cache()
    for _ in range(rounds):
        for cell in list(ready):
            set_tf32(Precision(cell.precision))
            with _noted(cell, found, ready):
                started = time.perf_counter()
                ready[cell](task.updates)
                wait(task.device)
                images = task.updates * task.batch_size
                found[cell]["images_per_s"].append(images / (time.perf_counter() - started))
    if len(wanted) > 1:
        # beside the others there was too little memory, perhaps
        ready.clear()
        for cell in [each for each, what in found.items() if "problem" in what]:
            gc.collect()
            if task.device.type == "cuda":
                torch.cuda.empty_cache()
            found |= measure(task, [cell], rounds)
    return found


@contextlib.contextmanager
def _noted(cell: Cell, found: dict[Cell, dict], ready: dict[Cell, Updates]) -> Iterator[None]:
    """Note that a cell cannot be measured, let go of it, and go on with the others."""
    try:
        yield
    except Exception as error:
        plain = in_plain_words(error)
        if not isinstance(plain, RunError | InputError):
            raise
        found[cell] = {"problem": str(plain).splitlines()[0]}
        ready.pop(cell, None)


def _begin_to_count(device: torch.device) -> float:
    """Return the memory of a GPU that is held now, in MB."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / 1e6


def _most_held(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else 0.0


def rows_of(task: Task, found: dict[Cell, dict], limits: dict[str, float]) -> list[dict]:
    """Return a row a cell; `limits` are the images/s that memory allows, by precision."""
    medians = {
        cell: statistics.median(each["images_per_s"])
        for cell, each in found.items()
        if each.get("images_per_s")
    }
    rows = []
    for cell, each in found.items():
        row = {"model": task.model, "batch_size": task.batch_size, **asdict(cell), **each}
        if cell in medians:
            peers = [
                speed
                for peer, speed in medians.items()
                if (peer.source, peer.precision) == ("timm", cell.precision)
            ]
            row |= {
                "median": medians[cell],
                "x_timm": medians[cell] / max(peers) if peers else None,
                "share_of_memory": medians[cell] / limits[cell.precision],
            }
        rows.append(row)
    return rows


def report(task: Task, rows: list[dict], limits: dict[str, float]) -> None:
    """Print a table of one network and batch."""
    shown = []
    for row in rows:
        cells_ = [row[key] for key in ("source", "execution", "layout", "precision")]
        if "problem" in row:
            shown.append((*cells_, row["problem"], "", "", "", ""))
            continue
        speeds = row["images_per_s"]
        shown.append(
            (
                *cells_,
                f"{row['median']:,.0f}",
                f"{min(speeds):,.0f} - {max(speeds):,.0f}",
                f"{row['x_timm']:.2f}" if row["x_timm"] else "",
                f"{100 * row['share_of_memory']:.0f} %",
                f"{row['mb']:,.0f}",
            )
        )
    columns = ("", "", "layout", "precision", "images/s", "spread", "x timm's best",
               "of memory's", "MB")  # fmt: skip
    allowed = ", ".join(f"{speed:,.0f} in {name}" for name, speed in limits.items())
    title = f"{task.model}, batch {task.batch_size}; memory allows {allowed} images/s"
    console.table(title, columns, shown)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = ["v3_large", "v3_small", "v2", "v1", "v4_conv_medium"]
    parser.add_argument("models", nargs="*", default=default)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 512, 1024])
    parser.add_argument("--executions", nargs="+", choices=EXECUTIONS, default=EXECUTIONS)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    parser.add_argument("--precisions", nargs="+", choices=list(Precision), default=PRECISIONS)
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    device = torch.device(words.device)
    speed = bandwidth(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    console.line(f"{name}, torch {torch.__version__}, copies {speed / 1e9:,.0f} GB/s")
    tables = []
    for model in words.models:
        net = build_model(model).train()
        limits = {
            each: speed / bytes_per_image(net, words.resolution, Precision(each).dtype)[0]
            for each in words.precisions
        }
        for batch in words.batch_sizes:
            task = Task(model, batch, words.resolution, device, words.updates)
            rows = rows_of(task, measure(task, cells(words), words.rounds), limits)
            report(task, rows, limits)
            tables += rows
            if words.json:
                # after each table: what comes next may fail
                about = {"device": name, "torch": torch.__version__, "bytes_per_s": speed}
                words.json.write_text(json.dumps(about | {"rows": tables}, indent=1) + "\n")


if __name__ == "__main__":
    main()
