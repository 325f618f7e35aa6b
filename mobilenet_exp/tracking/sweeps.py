"""A sweep's folder: one record for each of its jobs, run by any launcher."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobilenet_exp.core.files import write_file

MAX_NAME = 100
PLAN = "sweep.json"


def file_name(overrides: Iterable[str]) -> str:
    """Return a file name for a set of overrides, which any file system takes."""
    text = "_".join(sorted(overrides)) or "defaults"
    name = re.sub(r"[^A-Za-z0-9.,=_+-]+", "_", text)
    if name != text or len(name) > MAX_NAME:
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        name = f"{name[:MAX_NAME]}-{digest}"
    return name


@dataclass
class Sweep:
    """`folder` holds `job-N.json` files, and `sweep.json`: the group in W&B, the jobs to run."""

    folder: Path
    # folders that were not there before this sweep, the innermost first
    _made: list[Path] = field(default_factory=list)

    @classmethod
    def named_by(cls, overrides: tuple[str, ...], folder: Path) -> "Sweep":
        """Return the sweep beside `folder` named by the overrides that define its runs.

        The same overrides give the same folder, so repeating a sweep finds its records.
        """
        return cls(folder.parent / file_name(overrides))

    def begin(self, group: str, planned: list[tuple[str, ...]]) -> None:
        """Remove the records of an earlier sweep in this folder, and write the planned jobs.

        `planned` are the overrides of each job; empty for a search, which chooses them itself.
        """
        self._made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        for path in self.folder.glob("job-*.json"):
            path.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"group": group, "planned": planned}, indent=2)
        write_file(self.folder / PLAN, text + "\n")

    @property
    def group(self) -> str:
        """Return the group of all runs in W&B."""
        return self._plan()["group"]

    def _plan(self) -> dict[str, Any]:
        try:
            return json.loads((self.folder / PLAN).read_text())
        except (OSError, ValueError):
            return {"group": self.folder.name, "planned": []}

    def not_begun(self) -> list[tuple[str, ...]]:
        """Return the overrides of the planned jobs that have no record."""
        begun = {job["number"] for job in self.jobs()}
        planned = self._plan()["planned"]
        return [tuple(overrides) for number, overrides in enumerate(planned) if number not in begun]

    def varied(self) -> list[str]:
        """Return the keys in which the planned jobs differ."""
        planned = [tuple(overrides) for overrides in self._plan()["planned"]]
        common = set.intersection(*map(set, planned)) if planned else set()
        overrides = {override for job in planned for override in job} - common
        return sorted({override.lstrip("+~").partition("=")[0] for override in overrides})

    def record(
        self,
        number: int,
        overrides: tuple[str, ...],
        results: dict[str, Any] | None,
        error: str | None,
        *,
        is_bad_input: bool = False,
        is_stopped: bool = False,
    ) -> None:
        """Write the record of job `number`: its results, or one line on why there are none."""
        job = {
            "number": number,
            "overrides": overrides,
            "results": results,
            "error": error,
            "is_bad_input": is_bad_input,
            "is_stopped": is_stopped,
        }
        write_file(self.folder / f"job-{number}.json", json.dumps(job, indent=2) + "\n")

    def jobs(self) -> list[dict[str, Any]]:
        """Return the records by job number."""
        records = [json.loads(path.read_text()) for path in self.folder.glob("job-*.json")]
        return sorted(records, key=lambda job: job["number"])

    def discard(self) -> None:
        """Remove the records, and the folders that this sweep made if they are empty."""
        files = (self.folder / name for name in (PLAN, "multirun.yaml"))
        for path in (*self.folder.glob("job-*.json"), *files):
            path.unlink(missing_ok=True)
        for path in self._made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
