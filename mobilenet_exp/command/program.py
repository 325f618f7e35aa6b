"""A program, from its command line through Hydra to its job, and to its exit code."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.plugins.config_source import ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mobilenet_exp.command.errors import (
    BAD_INPUT,
    BAD_INPUT_ERRORS,
    FAILED,
    INTERRUPTED,
    PACKAGE,
    is_bad_input,
    is_ours,
    print_error,
    report_error,
    report_stop,
)
from mobilenet_exp.command.sweeping import SweepCallback, close_sweep, varied
from mobilenet_exp.config.convert import check_effects, to_config
from mobilenet_exp.config.explain import explain
from mobilenet_exp.config.help import help_text
from mobilenet_exp.config.overrides import check_overrides, keep_text, without_plus
from mobilenet_exp.config.schema import READERS, Config, EvalConfig
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.streams import discard_output, prepare_streams
from mobilenet_exp.machine.launch_env import read_slurm_env, this_rank
from mobilenet_exp.machine.preemption import Preempted, end_on_signals
from mobilenet_exp.tracking.sweeps import Sweep

# in a wheel the YAML files lie in the package, in a checkout beside it
CONF = next(each for each in (PACKAGE / "conf", PACKAGE.parent / "conf") if each.is_dir())

# Hydra looks for a file's package in its first line, where a byte order mark would hide it
_read_header = ConfigSource._get_header_dict
ConfigSource._get_header_dict = staticmethod(lambda text: _read_header(text.lstrip("\ufeff")))


@dataclass(frozen=True)
class Program:
    """A command: what it composes, and `job(config, overrides, group)` that runs on it.

    `conf` is its file in conf/, `groups` the config groups that its `--help` lists. `overrides`
    are the arguments that made this job; `group` names its sweep in W&B or is None. The job's
    docstring opens the help.
    """

    name: str
    conf: str
    schema: type
    job: Callable[..., Any]
    groups: tuple[str, ...] = ()
    can_sweep: bool = False

    def __post_init__(self) -> None:
        ConfigStore.instance().store(f"{self.name}_schema", self.schema)

    def __call__(self) -> None:
        """Run the command of `sys.argv`, and exit with its code.

        Bad input ends in one line and exit code 2, a failed run in its traceback and exit code 1.
        """
        prepare_streams()
        code = 0
        try:
            if {"-h", "--help"} & set(sys.argv[1:]):
                self._print_help()
            else:
                code = self._run()
            sys.stdout.flush()
        except BrokenPipeError:
            try:
                print(flush=True)
            except BrokenPipeError:
                # nobody reads what is printed any more, as after `| head`
                discard_output()
            else:
                raise
        if code:
            sys.exit(code)

    def _print_help(self) -> None:
        folders = [CONF]
        for flag, value in zip(sys.argv[1:], [*sys.argv[2:], ""], strict=True):
            flag, _, inline = flag.partition("=")
            folders += [Path(inline or value)] if flag in ("--config-dir", "-cd") else []
        about = "\n".join(
            line.removeprefix("    ") for line in (self.job.__doc__ or "").splitlines()
        )
        print(help_text(about, self.schema, folders, self.groups))

    def _run(self) -> int:
        """Have Hydra compose the configuration and run the job or the sweep; return the code."""
        # Hydra then raises instead of printing several lines of its own
        os.environ["HYDRA_FULL_ERROR"] = "1"
        # a scheduler's SIGTERM closes the run as a failure does
        end_on_signals()
        typed = sys.argv[1:]
        code = 0
        try:
            read_slurm_env()
            sys.argv[1:] = [keep_text(each, self.schema) for each in self._flags_first(typed)]
            main = hydra.main(version_base="1.3", config_path=str(CONF), config_name=self.conf)
            # a method would lack the attributes that Hydra looks at
            main(lambda composed: self._run_job(composed))()
        except Preempted as stop:
            # a sweep ends with its run
            code = stop.exit_code
        except KeyboardInterrupt:
            print_error(
                "interrupted; run the same command again to resume from the last checkpoint"
            )
            code = INTERRUPTED
        except BrokenPipeError:
            raise
        except Exception as error:
            # jobs report their own errors, so this one arose while composing, or in a sweeper
            if SweepCallback.sweep and any(job["error"] for job in SweepCallback.sweep.jobs()):
                print_error(f"the sweep ended early: {str(error).splitlines()[0]}")
                code = FAILED
            elif is_bad_input(error) or not is_ours(error):
                print_error(explain(error, typed, self.schema))
                code = BAD_INPUT
            else:
                raise
        finally:
            sweep = SweepCallback.sweep
            if sweep and not code and not sweep.jobs():
                print_error(f"{' '.join(varied(typed))}: a sweep of no runs")
            sweep_code = close_sweep(sweep) if sweep else 0
            code = code or sweep_code
        return code

    def _flags_first(self, typed: Sequence[str]) -> list[str]:
        """Check the arguments; return them with Hydra's flags first, where alone it reads them.

        Raises InputError for flags that do not exist or do not fit.
        """
        parser = get_args_parser()
        parser.error = _refuse
        check_overrides(typed, self.schema, self.groups, parser._option_string_actions)
        # `--info` would take an override that follows for its value
        (info,) = [each for each in parser._actions if "--info" in each.option_strings]
        arguments = [
            "--info=all" if each in info.option_strings and after not in info.choices else each
            for each, after in zip(typed, [*typed[1:], ""], strict=False)
        ]
        asked = parser.parse_intermixed_args(arguments)
        if asked.multirun and not self.can_sweep:
            raise InputError("--multirun", "", "only train and bench sweep")
        if asked.multirun and this_rank().size > 1:
            raise InputError("--multirun", "", "a sweep is started as one process, not as several")
        if asked.resolve and not asked.cfg:
            raise InputError("--resolve", "", "goes with --cfg job")
        return [each for each in arguments if each not in asked.overrides] + asked.overrides

    def _run_job(self, composed: DictConfig) -> Any:
        """Check the configuration of one job and run it.

        A sweep records each of its jobs, and goes on after one that failed. Returns the job's
        top-1 to a sweeper that searches; None if it failed.
        """
        # a launcher's process has streams of its own
        prepare_streams()
        hydra_config = HydraConfig.get()
        # as they were typed: one may hold an interpolation
        task = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
        overrides = tuple(without_plus(task))
        # a benchmark's jobs keep what they find in folders of their own
        is_sweep = hydra_config.mode == RunMode.MULTIRUN and self.schema is Config
        sweep = Sweep(Path(hydra_config.sweep.dir)) if is_sweep else None
        results, problem, code = None, "interrupted", 0
        is_stopped = True
        try:
            # again: those of a sweep may be from a file
            check_overrides(overrides, self.schema, self.groups)
            config = to_config(composed, self.schema)
            check_effects(config, overrides, sweep.varied() if sweep else ())
            if isinstance(config, Config | EvalConfig) and READERS.is_met(config):
                # torch's CPU threads wait awake for each other, by default for long, on the cores
                # that loading processes need; torch reads this when it is imported, in the job
                os.environ.setdefault("GOMP_SPINCOUNT", "3000")
            results = self.job(config, overrides, sweep.group if sweep else None)
            problem, is_stopped = "", False
        except Preempted as stop:
            problem = stop.line
            report_stop(stop)
            raise
        except Exception as error:
            problem, is_stopped = report_error(error, overrides, self.schema), False
            code = BAD_INPUT if isinstance(error, BAD_INPUT_ERRORS) else FAILED
        finally:
            if sweep:
                sweep.record(
                    hydra_config.job.num,
                    overrides,
                    results,
                    problem or None,
                    is_bad_input=code == BAD_INPUT,
                    is_stopped=is_stopped,
                )
        if sweep:
            return results["top1"] if results else None
        if code:
            sys.exit(code)
        return results


def _refuse(message: str) -> NoReturn:
    flag, _, problem = message.removeprefix("argument ").partition(": ")
    flag = flag.split("/")[0] if flag[0] == "-" else f"'{flag}'"
    raise InputError(flag, "", problem or "not understood; --help lists the keys")
