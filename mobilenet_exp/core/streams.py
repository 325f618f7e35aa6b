"""What standard output can take, and what must not reach it."""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator


def discard_output() -> None:
    """Send what is printed from here on nowhere, because nobody reads it any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def escape_what_cannot_be_shown() -> None:
    """Print characters that the output's encoding lacks as `\\u732b`, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        # none under pythonw, another kind in a notebook
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep what a library prints as errors, below Python too, unless it fails."""
    sys.stderr.flush()
    ours = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(ours, kept.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(ours, 2)
            os.close(ours)
