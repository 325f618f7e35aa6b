"""The door: composes a config with Hydra, turns bad input into one line, records sweeps.

The only file of the package that knows Hydra. Imports no torch, so that `--cfg job`
and shell completion answer at once.
"""

import functools
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mobilenet_exp.config import BenchConfig, Config, EvalConfig, to_config
from mobilenet_exp.errors import InputError
from mobilenet_exp.explain import explain

CONF = Path(__file__).resolve().parents[1] / "conf"
SCHEMAS = {"config": Config, "eval": EvalConfig, "bench": BenchConfig}
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130

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


def _main(program: Callable[[], None], schema: type) -> None:
    # Hydra then raises instead of printing several lines of its own
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sweep = _name_sweep(sys.argv)
    try:
        program()
    except KeyboardInterrupt:
        _print_error("interrupted; the same command resumes after the last whole epoch")
        sys.exit(INTERRUPTED)
    except Exception as error:
        # jobs report their own errors, so this one arose while composing
        _print_error(explain(error, sys.argv[1:], schema))
        sys.exit(BAD_INPUT)
    finally:
        code = _close_sweep(sweep) if sweep else 0
    if code:
        sys.exit(code)


def _run_job(job: Callable, composed: DictConfig, schema: type) -> Any:
    hydra_config = HydraConfig.get()
    overrides = tuple(hydra_config.overrides.task)
    if hydra_config.mode == RunMode.MULTIRUN:
        return _run_sweep_job(job, composed, schema, overrides, hydra_config)
    try:
        return job(to_config(composed, schema), overrides=overrides, group=None)
    except Exception as error:
        _report(error, overrides, schema)
        sys.exit(BAD_INPUT if _is_input(error) else FAILED)


def _run_sweep_job(
    job: Callable,
    composed: DictConfig,
    schema: type,
    overrides: tuple[str, ...],
    hydra_config: DictConfig,
) -> Any:
    """Run one job of a sweep and record it; a failed one does not stop the others."""
    sweep, number = Path(hydra_config.sweep.dir), hydra_config.job.num
    record = {
        "number": number,
        "overrides": overrides,
        "results": None,
        "error": "interrupted",
        "is_bad_input": False,
    }
    try:
        record["results"] = job(to_config(composed, schema), overrides=overrides, group=sweep.name)
        record["error"] = None
    except Exception as error:
        record["error"] = _report(error, overrides, schema)
        record["is_bad_input"] = _is_input(error)
    finally:
        (sweep / f"job-{number}.json").write_text(json.dumps(record, indent=2) + "\n")
    return record["results"]


def _is_input(error: Exception) -> bool:
    return isinstance(error, (InputError, OmegaConfBaseException))


def _report(error: Exception, overrides: tuple[str, ...], schema: type) -> str:
    """Print an error, with its traceback unless it is bad input; return its line."""
    if not _is_input(error):
        traceback.print_exc()
        return f"{type(error).__name__}: {error}".splitlines()[0]
    text = explain(error, list(overrides), schema)
    _print_error(text)
    return text


def _name_sweep(argv: list[str]) -> Path | None:
    """Give a sweep a folder named by what it varies, so that repeating it finds it again."""
    if not {"-m", "--multirun"} & set(argv):
        return None
    words = [word for word in argv[1:] if "=" in word and not word.startswith("-")]
    given = dict(word.split("=", 1) for word in words)
    if "hydra.sweep.dir" in given:
        return Path(given["hydra.sweep.dir"])
    varied = [word for word in words if not word.startswith(("run.", "hydra."))]
    name = re.sub(r"[^A-Za-z0-9.,=_+-]+", "_", "_".join(varied)) or "defaults"
    folder = Path(given.get("run.root", "runs")) / "sweeps" / name[:120]
    argv.append(f"hydra.sweep.dir='{folder}'")
    for old in folder.glob("job-*.json"):
        old.unlink()
    return folder


def _close_sweep(folder: Path) -> int:
    """Print the table of all jobs and return the exit code they add up to.

    If no job got past its own input, nothing is left behind.
    """
    paths = list(folder.glob("job-*.json"))
    jobs = sorted((json.loads(path.read_text()) for path in paths), key=lambda job: job["number"])
    if jobs:
        from mobilenet_exp.reports import print_sweep

        print_sweep(jobs)
    if all(job["is_bad_input"] for job in jobs):
        for path in (*paths, folder / "multirun.yaml"):
            path.unlink(missing_ok=True)
        for empty in (folder, folder.parent, folder.parent.parent):
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()
        return BAD_INPUT
    return FAILED if any(job["error"] for job in jobs) else 0


def _print_error(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)
