"""What the generators of this folder share: they write pages of docs/."""

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from mobilenet_exp.core.errors import InputError

DOCS = Path(__file__).resolve().parents[1]


def run(main: Callable[[list[str]], None]) -> None:
    """Write a page from the command line; bad input ends in one line."""
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(text: str) -> str:
    """Return a paragraph in lines of the pages' length."""
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)
