"""What a person sees: names that cannot be shown, narrow terminals, times."""

import functools

import pytest

from mobilenet_exp.core import console
from mobilenet_exp.core.text import duration, printable


@pytest.fixture
def terminal(monkeypatch, capsys):
    """Print on so many columns: `terminal(60)`; `capsys` has the text."""

    def of_width(width):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(console, "_terminal", functools.cache(console._Terminal))

    return of_width


@pytest.mark.parametrize("width", [60, 100])
def test_a_narrow_table_keeps_names_and_units(terminal, capsys, width):
    terminal(width)
    columns = (
        "run",
        *(f"{who}\n{what}" for who in ("ours", "paper") for what in ("top-1 %", "madds M")),
    )
    name = "width_mult=0.35 optimizer.lr=0.045"
    console.table("a sweep", columns, [(name, "93.10", "5.50", "67.40", "56.00")], ["a note"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert name in text
    for word in ("top-1 %", "madds M", "93.10", "56.00", "a note"):
        assert word in text
    if width == 60:
        assert lines[1:4] == [
            name,
            "  ours top-1 % 93.10, ours madds M 5.50, paper top-1 % 67.40",
            "  paper madds M 56.00",
        ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (45, "45 s"), (240, "4 min"), (18_720, "5 h 12 min"), (273_600, "3 d 4 h")],
)
def test_times_have_the_units_that_matter(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Köln 猫 👩\u200d🔬", "Köln 猫 👩\u200d🔬"),
        (b"k\xf6ln".decode(errors="surrogateescape"), r"k\xf6ln"),
        ("a\nb\x1b[31m", r"a\nb\x1b[31m"),
    ],
)
def test_what_cannot_be_shown_is_escaped(name, shown):
    assert printable(name) == shown
