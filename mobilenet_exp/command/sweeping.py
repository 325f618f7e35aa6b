"""A sweep: its folder and plan before the first job, a record of each, the table at its end."""

import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from shlex import quote
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from mobilenet_exp.command.errors import BAD_INPUT, FAILED, PACKAGE
from mobilenet_exp.config.overrides import without_plus
from mobilenet_exp.tracking.sweeps import Sweep, file_name


class SweepCallback(Callback):
    """Gives a sweep its folder, before its first job; Hydra calls it, see conf/config.yaml."""

    # the sweep of this process, for the table at its end
    sweep: Sweep | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        task = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        overrides = without_plus(task)
        given = [
            override for override in config.hydra.overrides.hydra if "hydra.sweep.dir=" in override
        ]
        folder = Path(config.hydra.sweep.dir)
        sweep = Sweep(folder) if given else Sweep.named_by(varied(overrides), folder)
        with read_write(config), open_dict(config):
            config.hydra.sweep.dir = str(sweep.folder)
            # each job is composed anew, from these overrides
            quoted = str(sweep.folder).replace("\\", "\\\\").replace("'", "\\'")
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")
        try:
            group, planned = plan_of(config, overrides)
        except HydraException:
            # the sweeper itself says what is wrong with them
            group, planned = file_name(varied(overrides)), []
        sweep.begin(group, planned)
        SweepCallback.sweep = sweep
        # jobs that a launcher starts in other processes must find this package
        places = [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))


def plan_of(config: DictConfig, overrides: Iterable[str]) -> tuple[str, list[tuple[str, ...]]]:
    """Return a sweep's group in W&B, and the overrides of its jobs; none where it is a search.

    The group names the keys that vary without their values: a sweep that is extended
    stays in it.
    """
    sweeper = config.hydra.sweeper
    params = sweeper.get("params") or {}
    arguments = [*(f"{key}={value}" for key, value in params.items()), *overrides]
    loader = GlobalHydra.instance().config_loader() if GlobalHydra.instance().hydra else None
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
    typed = {str(each.input_line): each for each in parsed}
    names = [
        typed[override].key_or_group if typed[override].is_sweep_override() else override
        for override in varied(list(typed))
    ]
    # a key that is given twice has its last values
    values: dict[str, list[str]] = {}
    for each in parsed:
        key = each.get_key_element()
        if not each.is_sweep_override():
            values[key] = [f"{key}={each.get_value_element_as_str()}"]
        elif each.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in each.sweep_string_iterator()]
    is_search = not sweeper._target_.endswith("BasicSweeper")
    return file_name(names), [] if is_search else list(itertools.product(*values.values()))


def varied(overrides: list[str]) -> tuple[str, ...]:
    """Return the overrides that name a sweep: all but those of `run`, which say how it runs."""
    return tuple(override for override in overrides if not override.lstrip("+~").startswith("run."))


def close_sweep(sweep: Sweep) -> int:
    """Print the table of all jobs and return the exit code they add up to."""
    jobs = sweep.jobs()
    if jobs:
        from mobilenet_exp.tracking.terminal import print_sweep

        print_sweep(jobs, sweep.not_begun())
        root = sweep.folder.parent
        if root.name == "sweeps":
            print(f"all runs on one page: python -m mobilenet_exp page {quote(str(root.parent))}")
    found = sweep.folder / "optimization_results.yaml"
    if found.exists():
        best = OmegaConf.load(found)
        chosen = " ".join(
            f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in best.best_params.items()
        )
        print(f"best: {chosen}, top-1 {best.best_value:.2f}; in {found}")
    if all(job["is_bad_input"] for job in jobs):
        # no job got past its own input
        sweep.discard()
        return BAD_INPUT
    return FAILED if any(job["error"] for job in jobs) else 0
