"""What a person sees in the terminal: lines, a progress bar, tables. Knows only text."""

import functools
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

T = TypeVar("T")
# `show(batches, label, total)` passes batches on and may draw a bar
Show = Callable[[Iterable[T], str, int], Iterable[T]]


class _Terminal(Console):
    """rich's console, which a reader that has gone away (`| head`) does not bring down."""

    def on_broken_pipe(self) -> None:
        discard_output()


def discard_output() -> None:
    """Send what is printed from here on nowhere, because nobody reads it any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


@functools.cache
def _terminal() -> Console:
    return _Terminal()


def line(text: str) -> None:
    """Print one line as it is."""
    _terminal().print(escape(text), highlight=False, soft_wrap=True)


def progress(batches: Iterable[T], label: str, total: int) -> Iterable[T]:
    """Pass `batches` on, with a bar that goes away at the end; no bar in a file or pipe."""
    terminal = _terminal()
    return track(
        batches,
        label,
        total=total,
        console=terminal,
        transient=True,
        disable=not terminal.is_terminal,
    )


def no_progress(batches: Iterable[T], label: str, total: int) -> Iterable[T]:
    """Pass `batches` on and show nothing: what processes other than the first one do."""
    return batches


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()
) -> None:
    """Print a table, its first column to the left and figures to the right, then the notes."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        grid.add_column(
            column, justify="right" if index else "left", no_wrap=index > 0, overflow="fold"
        )
    for row in rows:
        grid.add_row(*(escape(cell) for cell in row))
    # not the grid's own title, which wraps to the grid's width
    _terminal().print(f"[bold]{escape(title)}[/bold]", highlight=False)
    _terminal().print(grid)
    for note in notes:
        line(note)


def figure(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """Format a number, or `-` where there is none."""
    return "-" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def examples(found: Mapping[str, str], most: int = 3) -> str:
    """Return the first few names with their reasons: `a.jpg (truncated), b.jpg (empty), ...`."""
    first = [f"{name} ({reason})" for name, reason in list(found.items())[:most]]
    return ", ".join([*first, "..."] if len(found) > most else first)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: `1 image`, `2 images`, `2 processes`."""
    ending = "es" if noun.endswith(("s", "x", "ch")) else "s"
    return f"{count:,} {noun}" + ("" if count == 1 else ending)


def printable(text: str) -> str:
    """Return a name in characters that can be shown, the others escaped as `\\xe9` or `\\n`.

    A file's name may be bytes of no encoding, which Python keeps as surrogates.
    """
    if text.isprintable():
        return text
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    # controls, surrogates, separators of lines and paragraphs
    if unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp"):
        return character
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
