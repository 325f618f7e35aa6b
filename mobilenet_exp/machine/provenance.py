"""Which code and which libraries made a result. Knows no run."""

import contextlib
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

VERSIONS_OF = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "wandb")


def versions() -> dict[str, str]:
    """Return the installed versions of the libraries that decide a result."""
    return {name: version(name) for name in VERSIONS_OF}


def installed(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those libraries that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def git_commit() -> str | None:
    """Return the code's commit, with `-dirty` if files differ from it; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
