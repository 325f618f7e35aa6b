"""What a run's record costs: metrics, W&B, pictures, tables, beside a run without.

python -m benchmarks.record [--epochs 10] [--rounds 5] [WORD ...]

Each round trains the same run twice, a process for each, in turn: with `run.wandb=offline` and
pictures, and with `run.wandb=disabled` and none. WORDs are those of `train.py`, as `model=v2`.
Prints the time that the first process spends on the record, by epoch and at the run's ends, and
the medians of the rounds' ratios of an epoch with to one without, with their spread.
"""

import argparse
import contextlib
import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mobilenet_exp import compose, train
from mobilenet_exp.core import console
from mobilenet_exp.tracking.tracker import Tracker
from mobilenet_exp.training.reporting import Reporter

SIDES = {
    "with": ("run.wandb=offline", "run.pictures=true"),
    "without": ("run.wandb=disabled", "run.pictures=false"),
}


@dataclass
class Spent:
    """Seconds spent on the record, and when each epoch's was written."""

    opening: float = 0.0
    epochs: list[float] = field(default_factory=list)
    closing: float = 0.0
    ended: list[float] = field(default_factory=list)

    @property
    def epoch(self) -> float:
        """Return the median seconds of an epoch, its record included; the first one warms up."""
        between = zip(self.ended, self.ended[1:], strict=False)
        return statistics.median(later - earlier for earlier, later in between)


def measure(words: list[str]) -> Spent:
    """Train once, and return what the record took."""
    spent = Spent()
    kept: list[tuple[type, str, Callable]] = []

    def timed(kind: type, name: str, add: Callable[[float], None]) -> None:
        method = getattr(kind, name)
        kept.append((kind, name, method))

        def call(*given: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*given)
            finally:
                add(time.perf_counter() - started)

        setattr(kind, name, call)

    def add_opening(seconds: float) -> None:
        spent.opening += seconds

    def add_epoch(seconds: float) -> None:
        spent.epochs.append(seconds)
        spent.ended.append(time.perf_counter())

    def add_closing(seconds: float) -> None:
        spent.closing += seconds

    timed(Reporter, "epoch", add_epoch)
    timed(Reporter, "close", add_closing)
    timed(Reporter, "__init__", add_opening)
    timed(Tracker, "__enter__", add_opening)
    timed(Reporter, "announce", add_opening)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            train(compose(*words))
    finally:
        for kind, name, method in kept:
            setattr(kind, name, method)
    return spent


def measure_rounds(words: list[str], epochs: int, rounds: int) -> dict[str, list[Spent]]:
    """Return what the record took on either side, in each round."""
    found: dict[str, list[Spent]] = {side: [] for side in SIDES}
    context = multiprocessing.get_context("spawn")
    for number in range(rounds):
        # who comes first takes turns, too
        for side in sorted(SIDES, reverse=bool(number % 2)):
            with tempfile.TemporaryDirectory() as folder, context.Pool(1) as pool:
                places = [f"train.epochs={epochs}", f"run.root={folder}"]
                found[side].append(pool.apply(measure, ([*words, *places, *SIDES[side]],)))
    return found


def report(found: dict[str, list[Spent]]) -> None:
    """Print what was found."""
    rows = []
    for side, rounds in found.items():
        each = [1000 * seconds for spent in rounds for seconds in spent.epochs]
        share = [100 * statistics.mean(spent.epochs) / spent.epoch for spent in rounds]
        rows.append(
            (
                side,
                f"{statistics.median(spent.epoch for spent in rounds):.2f}",
                f"{statistics.median(each):.1f} ({max(each):.0f})",
                f"{statistics.median(share):.2f}",
                f"{statistics.median(spent.opening for spent in rounds):.2f}",
                f"{statistics.median(spent.closing for spent in rounds):.2f}",
            )
        )
    columns = ("record", "epoch s", "record ms (largest)", "mean %", "opening s", "closing s")
    pairs = zip(found["with"], found["without"], strict=True)
    ratios = sorted(one.epoch / other.epoch for one, other in pairs)
    spread = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} - {ratios[-1]:.3f})"
    console.table("a run's record", columns, rows, [f"an epoch with it, to one without: {spread}"])


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="of train.py, as model=v2")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.epochs < 2 or arguments.rounds < 1:
        parser.error("--epochs must be at least 2, of which the first warms up, and --rounds 1")
    report(measure_rounds(arguments.words, arguments.epochs, arguments.rounds))


if __name__ == "__main__":
    main()
