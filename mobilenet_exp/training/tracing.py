"""Where the time of a run's updates goes, by torch's profiler."""

import os
from pathlib import Path

import torch

from mobilenet_exp.core.text import plural

# updates before it: the first ones choose algorithms and allocate
SKIPPED = 3
ROWS = 25


class Tracer:
    """Traces `updates` of a run, after a few, into trace.json.gz and trace.txt of its folder.

    The first can be opened at https://ui.perfetto.dev, the second says which operators took
    how long.
    """

    def __init__(self, updates: int, folder: Path, device: torch.device) -> None:
        self.updates, self.folder, self.device = updates, folder, device
        self._made = 0
        self._profile: torch.profiler.profile | None = None

    def after_update(self) -> str:
        """Begin or end the trace where it is time to; return a line when it is written."""
        self._made += 1
        if self._made == SKIPPED:
            self._begin()
        elif self._profile and self._made == SKIPPED + self.updates:
            return self._end(self._profile)
        return ""

    def _begin(self) -> None:
        # kineto reports on its own work
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        activity = torch.profiler.ProfilerActivity
        kinds = [activity.CPU, *([activity.CUDA] if self.device.type == "cuda" else [])]
        self._profile = torch.profiler.profile(
            activities=kinds, record_shapes=True, profile_memory=True
        )
        self._profile.start()

    def close(self) -> str:
        """End a trace that is under way, with fewer updates; return a line if there was one."""
        return self._end(self._profile) if self._profile else ""

    def _end(self, profile: torch.profiler.profile) -> str:
        self._profile = None
        path = self.folder / "trace.json.gz"
        by = f"self_{'cuda' if self.device.type == 'cuda' else 'cpu'}_time_total"
        try:
            profile.stop()
            profile.export_chrome_trace(str(path))
            table = profile.key_averages(group_by_input_shape=True)
            path.with_name("trace.txt").write_text(table.table(sort_by=by, row_limit=ROWS))
        except (OSError, RuntimeError) as error:
            # a run does not end for it
            return f"the trace could not be written: {error}"
        count = plural(min(self._made - SKIPPED, self.updates), "update")
        return f"{count} traced: {path} (for https://ui.perfetto.dev), trace.txt"
