"""What standard output can take: any character, and a reader that goes away."""

import io
import os
import sys


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
