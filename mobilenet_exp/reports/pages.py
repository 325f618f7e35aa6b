"""Where generated pages go."""

import textwrap
from pathlib import Path

from mobilenet_exp.core.errors import InputError

DOCS = Path(__file__).resolve().parents[2] / "docs"


def check_checkout() -> None:
    """Raise InputError for an installed package, which has no pages to write."""
    if not (DOCS.parent / "conf").is_dir():
        raise InputError("docs", DOCS, "is written in a checkout of the repository only")


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(text: str) -> str:
    """Return a paragraph in lines of the pages' length."""
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)
