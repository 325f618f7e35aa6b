"""Prints the tables of a benchmark."""

from collections.abc import Sequence
from typing import Any

from mobilenet_exp.core import console
from mobilenet_exp.core.text import figure
from mobilenet_exp.deploy.by_layer import LayerTime
from mobilenet_exp.deploy.one_call import OneCall
from mobilenet_exp.deploy.runtimes import INT8

MILLION = 1e6
# layers that are printed, of those that take longest
MOST_LAYERS = 12


def print_latency(
    rows: Sequence[dict[str, Any]], *, resolution: int, rounds: int, where: str, peak: float
) -> None:
    """Print what is known of each network in each runtime, by batch size."""
    columns = ("", "runtime", "ms", "quartiles", "x", "images/s", "GMAC/s", "peak %", "MB",
               "madds M", "params M")  # fmt: skip
    for size in dict.fromkeys(row["batch_size"] for row in rows):
        here = [row for row in rows if row["batch_size"] == size]
        first = {row["model"]: row["latency_ms"] for row in reversed(here)}
        console.table(
            f"batch {size}, {resolution} px, on {where}",
            columns,
            [_cells(row, first[row["model"]]) for row in here if not row["problem"]],
        )
        for row in here:
            if row["problem"]:
                console.line(f"{row['model']}, {row['runtime']}: not timed: {row['problem']}")
    console.line(
        f"ms of one batch's forward: median of {rounds} interleaved rounds after warm-up; x: times "
        "as fast as the same network in the first runtime; madds of one image"
    )
    differences = f"{_worst(rows, is_int8=False):.0e} of the largest at most"
    if any(row["runtime"].endswith(INT8) for row in rows):
        differences += f", in int8 by {_worst(rows, is_int8=True):.0e}"
    console.line(
        f"peak: a matrix product's {peak:.0f} GMAC/s here; MB: weights and all that a forward "
        f"holds; answers differ from torch's by {differences}"
    )


def _worst(rows: Sequence[dict[str, Any]], *, is_int8: bool) -> float:
    """Return the largest difference of an answer from torch's own."""
    return max(
        (
            row["difference"]
            for row in rows
            if row["difference"] is not None and row["runtime"].endswith(INT8) == is_int8
        ),
        default=0.0,
    )


def _cells(row: dict[str, Any], first_ms: float | None) -> tuple[str, ...]:
    ms = row["latency_ms"]
    return (
        row["model"],
        row["runtime"],
        figure(ms, 1),
        f"{row['lower_ms']:.1f}-{row['upper_ms']:.1f}",
        figure(first_ms / ms if first_ms else None),
        figure(row["images_per_s"], 0),
        figure(row["gmacs_per_s"], 0),
        figure(100 * row["peak_share"], 0),
        figure(row["memory_mb"], 0),
        figure(row["madds"] / MILLION, 0),
        figure(row["params"] / MILLION),
    )


def print_one_call(calls: Sequence[OneCall], rows: Sequence[dict[str, Any]], where: str) -> None:
    """Print the old method's figures beside ours and beside the published ones."""
    ours: dict[tuple[str, int], float | None] = {}
    for row in rows:
        ours.setdefault((row["model"], row["batch_size"]), row["latency_ms"])
    console.table(
        f"one call in training mode, as the old V1 repository timed, on {where}",
        ("", "batch", "one call ms", "ours ms", "Titan X ms"),
        [
            (
                call.model,
                str(call.batch_size),
                figure(call.ms, 1),
                figure(ours.get((call.model, call.batch_size)), 1),
                figure(call.published_ms, 1),
            )
            for call in calls
        ],
        (
            "one call: one untimed forward, one timed, nothing waits for the device, BatchNorm and "
            "dropout as in training; ours: the median above, in the first runtime",
            "Titan X: of marvis/pytorch-mobilenet, 2017; on a GPU one call times mainly "
            "the launch of kernels, of which there was one for each group of a convolution",
        ),
    )


def print_layers(layers: Sequence[LayerTime], title: str) -> None:
    """Print the slowest layers, and the percentage of time and madds of each kind of layer."""
    ms, madds = sum(each.ms for each in layers), sum(each.madds for each in layers)
    slowest = sorted(layers, key=lambda each: -each.ms)[:MOST_LAYERS]
    kinds = {
        kind: [each for each in layers if each.kind == kind]
        for kind in dict.fromkeys(each.kind for each in layers)
    }
    summed = [
        (f"all {kind}", sum(each.ms for each in found), sum(each.madds for each in found))
        for kind, found in kinds.items()
    ]
    single = [(f"{each.block}, {each.kind}", each.ms, each.madds) for each in slowest]
    console.table(
        f"layers of {title}, one by one",
        ("", "ms", "time %", "madds M", "madds %"),
        [
            (
                name,
                figure(spent, 2),
                figure(100 * spent / ms, 0),
                figure(count / MILLION, 1),
                figure(100 * count / max(madds, 1), 0),
            )
            for name, spent, count in [
                *sorted(summed, key=lambda each: -each[1]),
                *single,
            ]
        ],
    )
