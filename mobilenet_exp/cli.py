"""The door: composes a config with Hydra, turns bad input into one line, records sweeps.

The only file of the package that knows Hydra. Imports no torch, so that `--cfg job`
and shell completion answer at once.
"""

import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from mobilenet_exp.config.convert import to_config
from mobilenet_exp.config.explain import explain
from mobilenet_exp.config.schema import BenchConfig, Config, EvalConfig
from mobilenet_exp.core.errors import InputError, RunError
from mobilenet_exp.machine.preemption import Preempted, requeue
from mobilenet_exp.tracking.sweeps import Sweep

CONF = Path(__file__).resolve().parents[1] / "conf"
SCHEMAS = {"config": Config, "eval": EvalConfig, "bench": BenchConfig}
BAD_INPUT, FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143
# done, but not with everything that was asked for
INCOMPLETE = 3
BAD_INPUT_ERRORS = (InputError, HydraException, OmegaConfBaseException)

for _name, _schema in SCHEMAS.items():
    ConfigStore.instance().store("schema" if _name == "config" else f"{_name}_schema", _schema)


def entry(config_name: str) -> Callable[[Callable], Callable[[], None]]:
    """Decorate `job(config, overrides=..., group=...)` into a command-line program.

    `overrides` are the words that made this job, `group` names its sweep or is None.
    Bad input ends in one line and exit code 2, a failed run in its traceback and 1.
    """

    def decorate(job: Callable) -> Callable[[], None]:
        @functools.wraps(job)
        def task(composed: DictConfig) -> Any:
            return _run_job(job, composed, SCHEMAS[config_name])

        compose = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
        return functools.partial(_main, compose(task), SCHEMAS[config_name])

    return decorate


class SweepCallback(Callback):
    """Gives a sweep its folder, before its first job; Hydra calls it, see conf/config.yaml."""

    # the sweep of this process, for the table at its end
    sweep: Sweep | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        words = list(config.hydra.overrides.task)
        given = [word for word in config.hydra.overrides.hydra if "hydra.sweep.dir=" in word]
        folder = Path(config.hydra.sweep.dir)
        sweep = Sweep(folder) if given else Sweep.named_by(words, folder)
        with read_write(config), open_dict(config):
            config.hydra.sweep.dir = str(sweep.folder)
            # each job is composed anew, from these words
            quoted = str(sweep.folder).replace("\\", "\\\\").replace("'", "\\'")
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")
        sweep.begin()
        SweepCallback.sweep = sweep
        # jobs that a launcher starts in other processes must find this package
        places = [str(CONF.parent), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))


def _main(program: Callable[[], None], schema: type) -> None:
    # Hydra then raises instead of printing several lines of its own
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # a scheduler's end closes the run as a failure does
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    if schema is not Config and {"-m", "--multirun"} & set(sys.argv):
        _print_error("--multirun: only train.py sweeps")
        sys.exit(BAD_INPUT)
    code = 0
    try:
        program()
    except Preempted as stop:
        # a sweep ends with its run
        code = stop.exit_code
    except KeyboardInterrupt:
        _print_error("interrupted; the same command goes on after the last checkpoint")
        code = INTERRUPTED
    except Exception as error:
        # jobs report their own errors, so this one arose while composing, or in a sweeper
        if SweepCallback.sweep and any(job["error"] for job in SweepCallback.sweep.jobs()):
            _print_error(f"the sweep ended early: {str(error).splitlines()[0]}")
            code = FAILED
        elif isinstance(error, BAD_INPUT_ERRORS) or "Config group" in str(error):
            _print_error(explain(error, sys.argv[1:], schema))
            code = BAD_INPUT
        else:
            raise
    finally:
        sweep_code = _close_sweep(SweepCallback.sweep) if SweepCallback.sweep else 0
        code = code or sweep_code
    if code:
        sys.exit(code)


def _run_job(job: Callable, composed: DictConfig, schema: type) -> Any:
    hydra_config = HydraConfig.get()
    overrides = tuple(hydra_config.overrides.task)
    if hydra_config.mode == RunMode.MULTIRUN:
        return _run_sweep_job(job, composed, overrides, hydra_config)
    try:
        return job(to_config(composed, schema), overrides=overrides, group=None)
    except Preempted as stop:
        _report_stop(stop)
        raise
    except Exception as error:
        _report(error, overrides, schema)
        sys.exit(BAD_INPUT if isinstance(error, BAD_INPUT_ERRORS) else FAILED)


def _run_sweep_job(
    job: Callable, composed: DictConfig, overrides: tuple[str, ...], hydra_config: DictConfig
) -> Any:
    """Run one job of a sweep and record it; a failed one does not stop the others.

    Returns its top-1, which a sweeper that searches may go by; None if it failed.
    """
    sweep, number = Sweep(Path(hydra_config.sweep.dir)), hydra_config.job.num
    results, error_line, is_bad_input = None, "interrupted", False
    try:
        results = job(to_config(composed), overrides=overrides, group=sweep.folder.name)
        error_line = None
    except Preempted as stop:
        error_line = stop.line
        _report_stop(stop)
        raise
    except Exception as error:
        error_line = _report(error, overrides, Config)
        is_bad_input = isinstance(error, BAD_INPUT_ERRORS)
    finally:
        sweep.record(number, overrides, results, error_line, is_bad_input=is_bad_input)
    return results["top1"] if results else None


def _report_stop(stop: Preempted) -> None:
    """Say that a run was stopped and saved, and have a scheduler run it again."""
    _print_error(stop.line)
    # one process asks for all that share the job
    if os.environ.get("RANK", "0") == "0" and (line := requeue(stop)):
        _print_error(line)


def _close_sweep(sweep: Sweep) -> int:
    """Print the table of all jobs and return the exit code they add up to."""
    jobs = sweep.jobs()
    if jobs:
        from mobilenet_exp.tracking.terminal import print_sweep

        print_sweep(jobs)
    found = sweep.folder / "optimization_results.yaml"
    if found.exists():
        best = OmegaConf.load(found)
        words = " ".join(f"{key}={value:.6g}" for key, value in best.best_params.items())
        print(f"best: {words}, top-1 {best.best_value:.2f}; in {found}")
    if all(job["is_bad_input"] for job in jobs):
        # no job got past its own input
        sweep.discard()
        return BAD_INPUT
    return FAILED if any(job["error"] for job in jobs) else 0


def _report(error: Exception, overrides: tuple[str, ...], schema: type) -> str:
    """Print an error, with its traceback if no person was meant to read it; return its line."""
    if isinstance(error, RunError):
        _print_error(str(error))
        return str(error)
    if not isinstance(error, BAD_INPUT_ERRORS):
        traceback.print_exception(error)
        return f"{type(error).__name__}: {error}".splitlines()[0]
    text = explain(error, list(overrides), schema)
    _print_error(text)
    return text


def _print_error(text: str) -> None:
    # of processes that share a job, the first says what they all know
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {text}", file=sys.stderr)
