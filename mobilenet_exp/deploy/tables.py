"""What a benchmark prints. Reads plain rows; measures nothing."""

from collections.abc import Sequence
from typing import Any

from mobilenet_exp.core import console
from mobilenet_exp.core.text import figure
from mobilenet_exp.tracking.terminal import MILLION


def print_latency(
    rows: Sequence[dict[str, Any]], resolution: int, rounds: int, device: Any
) -> None:
    """Print median and spread of a forward per net and batch size, and what they count."""
    columns = ("", "ms", "min", "max", "ratio", "madds M", "params M", "old ms")
    for size in dict.fromkeys(row["batch_size"] for row in rows):
        nets = [row for row in rows if row["batch_size"] == size]
        cells = [
            (
                row["model"].removeprefix("torchvision:"),
                *(figure(row[key], 1) for key in ("latency_ms", "fastest_ms", "slowest_ms")),
                figure(row["latency_ms"] / nets[0]["latency_ms"]),
                figure(row["madds"] / MILLION, 1),
                figure(row["params"] / MILLION),
                figure(row["old_ms"], 1),
            )
            for row in nets
        ]
        console.table(f"batch {size}, {resolution} px, on {device}", columns, cells)
    console.line(
        f"ms of one batch's forward, eval mode: median, min and max of {rounds} "
        "interleaved rounds after warm-up; ratio to the first net; madds of one image"
    )
    console.line(
        "old ms: published by marvis/pytorch-mobilenet for a Titan X; one unsynchronised call in "
        "training mode, which times the launch alone: not comparable"
    )
