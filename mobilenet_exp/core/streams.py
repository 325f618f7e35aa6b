"""Standard streams: closed ones, characters they cannot encode, output to hide."""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, Any


def discard_output(stream: Any = None) -> None:
    """Discard what is printed from here on: its reader is gone, or the disk is full."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, (stream or sys.stdout).fileno())
    os.close(nowhere)


def say(text: str) -> None:
    """Print a line as an error; one that cannot be printed, as on a closed terminal, is lost."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        discard_output(sys.stderr)


def prepare_streams() -> None:
    """Open the standard streams that are closed, and let all of them print any character.

    Otherwise the next opened file would get the file descriptor of a closed stream. A character
    that the output's encoding lacks is printed as `\\u732b`.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # the lowest number that is free is this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        # none under pythonw, another kind in a notebook
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Hide standard error, C-level output included; show it if the block raises."""
    sys.stderr.flush()
    try:
        ours = os.dup(2)
    except OSError:
        # it is closed
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            kept: IO = stack.enter_context(tempfile.TemporaryFile())
        except OSError:
            # no folder for temporary files can be written
            kept = stack.enter_context(open(os.devnull, "r+b"))
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
