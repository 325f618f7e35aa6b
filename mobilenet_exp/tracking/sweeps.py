"""A sweep's folder: one record for each of its jobs, whoever ran it. Knows no Hydra."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_NAME = 100


@dataclass
class Sweep:
    """`folder` holds `job-N.json` files; its name is the sweep's group in W&B."""

    folder: Path
    # folders that were not there before this sweep, the innermost first
    _made: list[Path] = field(default_factory=list)

    @classmethod
    def named_by(cls, words: tuple[str, ...], folder: Path) -> "Sweep":
        """Place a sweep beside `folder`, named by the words that say what its runs learn.

        The same words give the same folder, so repeating a sweep finds its records.
        """
        text = "_".join(sorted(words)) or "defaults"
        name = re.sub(r"[^A-Za-z0-9.,=_+-]+", "_", text)
        if name != text or len(name) > MAX_NAME:
            digest = hashlib.sha256(text.encode()).hexdigest()[:8]
            name = f"{name[:MAX_NAME]}-{digest}"
        return cls(folder.parent / name)

    def begin(self) -> None:
        """Forget the records of an earlier sweep in this folder."""
        self._made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        for path in self.folder.glob("job-*.json"):
            path.unlink()

    def record(
        self,
        number: int,
        overrides: tuple[str, ...],
        results: dict[str, Any] | None,
        error: str | None,
        *,
        is_bad_input: bool,
    ) -> None:
        """Keep what became of job `number`: its results, or the line of its error."""
        job = {
            "number": number,
            "overrides": overrides,
            "results": results,
            "error": error,
            "is_bad_input": is_bad_input,
        }
        (self.folder / f"job-{number}.json").write_text(json.dumps(job, indent=2) + "\n")

    def jobs(self) -> list[dict[str, Any]]:
        """Return the records by job number."""
        records = [json.loads(path.read_text()) for path in self.folder.glob("job-*.json")]
        return sorted(records, key=lambda job: job["number"])

    def discard(self) -> None:
        """Remove the records, and the folders that this sweep made if they are empty."""
        for path in (*self.folder.glob("job-*.json"), self.folder / "multirun.yaml"):
            path.unlink(missing_ok=True)
        for path in self._made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
