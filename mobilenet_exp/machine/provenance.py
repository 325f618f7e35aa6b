"""Which code and which libraries made a result. Knows no run."""

import subprocess
from importlib.metadata import version
from pathlib import Path

VERSIONS_OF = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "wandb")


def versions() -> dict[str, str]:
    """Return the installed versions of the libraries that decide a result."""
    return {name: version(name) for name in VERSIONS_OF}


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
