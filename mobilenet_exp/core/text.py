"""Values as text for a person: figures, counts, times, names."""

import csv
import io
import unicodedata
from collections.abc import Iterable, Mapping


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


def duration(seconds: float) -> str:
    """Return a time in the two units that matter: `45 s`, `4 min`, `5 h 12 min`, `3 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


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


def as_csv(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as the text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
