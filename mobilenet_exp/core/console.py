"""What a person sees in the terminal: lines, a progress bar, tables."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mobilenet_exp.core.errors import RunError, first_line
from mobilenet_exp.core.streams import discard_output, say

T = TypeVar("T")
# the text of a progress bar, read again with each batch
Label = str | Callable[[], str]
# `show(batches, label, total)` passes batches on and may draw a bar
Show = Callable[[Iterable[T], Label, int], Iterable[T]]
# width in columns of an output that is not a terminal and where COLUMNS is not set
FILE_WIDTH = 120
# columns of a table's first column, below which its rows are stacked instead
NAME_WIDTH = 20


class _Terminal(Console):
    """rich's console, which survives a closed pipe (`| head`) and a full disk."""

    def on_broken_pipe(self) -> None:
        discard_output()

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            discard_output()
            say(f"standard output cannot be written ({error.strerror}); the program continues")


@functools.cache
def _terminal() -> Console:
    if os.environ.get("COLUMNS") == "0":
        # what some containers leave, of a terminal of unknown width
        del os.environ["COLUMNS"]
    # a notebook's output says of itself that it is a terminal
    is_notebook = type(sys.stdout).__module__.startswith("ipykernel")
    found = _Terminal(force_jupyter=False, force_terminal=False if is_notebook else None)
    if not found.is_terminal and "COLUMNS" not in os.environ:
        return _Terminal(width=FILE_WIDTH, force_jupyter=False, force_terminal=False)
    return found


def is_terminal() -> bool:
    """Return whether standard output is a terminal, and not a file or a pipe."""
    return _terminal().is_terminal


def line(text: str) -> None:
    """Print one line as it is."""
    _terminal().print(escape(text), highlight=False, soft_wrap=True)


def raw(text: str) -> None:
    """Print what another program reads, as JSON or CSV."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
    except OSError as error:
        discard_output()
        raise RunError(f"standard output cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def best_effort(what: str) -> Iterator[None]:
    """Run an optional part of the work: an error is printed in one line, not raised."""
    try:
        yield
    except Exception as error:
        line(f"{what}: could not be made ({first_line(error)}); the rest goes on")


def progress(batches: Iterable[T], label: Label, total: int) -> Iterable[T]:
    """Pass `batches` on, with a bar that goes away at the end; no bar in a file or pipe."""
    terminal = _terminal()
    if not terminal.is_terminal:
        yield from batches
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal, transient=True) as bar:
        task = bar.add_task(_words(label), total=total)
        for batch in batches:
            yield batch
            bar.update(task, advance=1, description=_words(label))


def _words(label: Label) -> str:
    return escape(label if isinstance(label, str) else label())


def no_progress(batches: Iterable[T], label: Label, total: int) -> Iterable[T]:
    """Pass `batches` on and show nothing: what processes other than the first one do."""
    return batches


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()
) -> None:
    """Print a table, its first column to the left and figures to the right, then the notes.

    Where it is too wide for the terminal, each row is printed below its name instead.
    """
    rows = [tuple(row) for row in rows]
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        grid.add_column(
            column, justify="right" if index else "left", no_wrap=index > 0, overflow="fold"
        )
    for row in rows:
        grid.add_row(*(escape(cell) for cell in row))
    # not the grid's own title, which wraps to the grid's width
    line_of_title = f"[bold]{escape(title)}[/bold]"
    _terminal().print(line_of_title, highlight=False, soft_wrap=True)
    endless = _terminal().options.update(width=10_000)
    needed = Measurement.get(_terminal(), endless, grid).maximum
    # names may be folded, a little
    longest = max((len(row[0]) for row in rows), default=0)
    if needed - max(0, longest - NAME_WIDTH) <= _terminal().width:
        _terminal().print(grid)
    else:
        for row in rows:
            for each in _stacked(columns, row, _terminal().width):
                line(each)
    for note in notes:
        line(note)


def _stacked(columns: Sequence[str], row: Sequence[str], width: int) -> list[str]:
    """Return a row as lines: its name, then every figure behind its column's name."""
    name, *cells = row
    lines = [name or " ".join(columns[0].split())]
    for column, cell in zip(columns[1:], cells, strict=True):
        if cell == "-":
            continue
        pair = f"{' '.join(column.split())} {cell}"
        if lines[1:] and len(lines[-1]) + len(pair) + 2 <= width:
            lines[-1] += f", {pair}"
        else:
            lines.append(f"  {pair}")
    return lines
