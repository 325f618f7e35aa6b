"""What a person sees in the terminal: lines, a progress bar, tables. Knows only text."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich import box, get_console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

T = TypeVar("T")


def line(text: str) -> None:
    """Print one line as it is."""
    get_console().print(escape(text), highlight=False, soft_wrap=True)


def progress(batches: Iterable[T], label: str, total: int) -> Iterable[T]:
    """Pass `batches` on, with a bar that goes away at the end; no bar in a file or pipe."""
    console = get_console()
    return track(
        batches,
        label,
        total=total,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


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
    get_console().print(f"[bold]{escape(title)}[/bold]", highlight=False)
    get_console().print(grid)
    for note in notes:
        line(note)


def figure(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """Format a number, or `-` where there is none."""
    return "-" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"
