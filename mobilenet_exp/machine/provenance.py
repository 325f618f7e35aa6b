"""Which command, code, libraries and machine made a result."""

import contextlib
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shlex import quote
from typing import Any

LIBRARIES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "wandb")


def versions(*more: str) -> dict[str, str]:
    """Return the versions of the libraries that decide a result, and of `more` if installed."""
    versions = {}
    for name in (*LIBRARIES, *more):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def git_commit() -> str | None:
    """Return the code's commit, with `-dirty` if files differ from it; None outside git.

    Nor has a package that is installed inside somebody's repository a commit of its own.
    """
    file = Path(__file__)
    is_tracked = ["git", "ls-files", "--error-unmatch", file.name]
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        for command in (is_tracked, describe):
            done = subprocess.run(
                command, cwd=file.parent, capture_output=True, text=True, timeout=10
            )
            if done.returncode:
                return None
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def processor_name() -> str:
    """Return what the CPU calls itself, as `AMD EPYC`; its architecture where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def provenance(program: str, overrides: Sequence[str] | None) -> dict[str, Any]:
    """Return what makes a result, for a file beside it; `started` is UTC in ISO format.

    `command` can be copied into a shell, as `python train.py model=v2`. It is None for a job
    that Python called, which has no `overrides`.
    """
    command = None
    if overrides is not None:
        command = " ".join(["python", program, *map(quote, overrides)])
    return {
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "versions": versions() | {"python": platform.python_version()},
        "processor": processor_name(),
        "num_cores": os.cpu_count(),
    }
