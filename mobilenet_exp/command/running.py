"""One command: its words checked, its configuration composed, its job run, its exit code."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mobilenet_exp.command.programs import (
    BAD_INPUT,
    CONF,
    FAILED,
    GROUPS,
    INTERRUPTED,
    PROGRAMS,
    SWEEPING,
)
from mobilenet_exp.command.reporting import (
    BAD_INPUT_ERRORS,
    is_bad_input,
    is_ours,
    print_error,
    report_error,
    report_stop,
)
from mobilenet_exp.command.sweeping import (
    SweepCallback,
    check_groups,
    close_sweep,
    run_sweep_job,
    varied,
)
from mobilenet_exp.config.convert import to_config
from mobilenet_exp.config.explain import explain
from mobilenet_exp.config.help import help_text
from mobilenet_exp.config.overrides import check_flags, check_overrides, keep_text, without_plus
from mobilenet_exp.config.rules import check_effects
from mobilenet_exp.config.schema import READERS, Config, EvalConfig
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.streams import (
    discard_output,
    escape_what_cannot_be_shown,
    open_closed_streams,
)
from mobilenet_exp.machine.launch_env import read_slurm_env, this_rank
from mobilenet_exp.machine.preemption import Preempted, end_on_signals


def run_program(composing: Callable[[], None], name: str, about: str) -> None:
    """Run a program from the command line, and exit with its code."""
    open_closed_streams()
    escape_what_cannot_be_shown()
    code = 0
    try:
        if {"-h", "--help"} & set(sys.argv[1:]):
            _print_help(name, about)
        else:
            code = _compose_and_run(composing, name)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _has_lost_its_reader():
            raise
        discard_output()
    if code:
        sys.exit(code)


def _has_lost_its_reader() -> bool:
    """Return whether nobody reads what is printed any more, as after `| head`."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def _print_help(name: str, about: str) -> None:
    folders = [CONF]
    for flag, value in zip(sys.argv[1:], [*sys.argv[2:], ""], strict=True):
        flag, _, joined = flag.partition("=")
        folders += [Path(joined or value)] if flag in ("--config-dir", "-cd") else []
    text = "\n".join(line.removeprefix("    ") for line in about.splitlines())
    print(help_text(text, PROGRAMS[name][1], folders, GROUPS[name]))


def _compose_and_run(composing: Callable[[], None], name: str) -> int:
    """Compose the configuration, run the job or the sweep, and return the exit code."""
    # Hydra then raises instead of printing several lines of its own
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # a scheduler's SIGTERM closes the run as a failure does
    end_on_signals()
    typed, schema = sys.argv[1:], PROGRAMS[name][1]
    code = 0
    try:
        ordered = _check_command(name, typed, schema)
        sys.argv[1:] = [keep_text(word, schema) for word in ordered]
        composing()
    except Preempted as stop:
        # a sweep ends with its run
        code = stop.exit_code
    except KeyboardInterrupt:
        print_error("interrupted; run the same command again to resume from the last checkpoint")
        code = INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        # jobs report their own errors, so this one arose while composing, or in a sweeper
        if SweepCallback.sweep and any(job["error"] for job in SweepCallback.sweep.jobs()):
            print_error(f"the sweep ended early: {str(error).splitlines()[0]}")
            code = FAILED
        elif is_bad_input(error) or not is_ours(error):
            print_error(explain(error, typed, schema))
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


def _check_command(name: str, words: list[str], schema: type) -> list[str]:
    """Return the words with Hydra's flags first, where alone it understands them.

    Raises InputError for flags that do not exist or do not fit, and for a place among
    processes that cannot be.
    """
    read_slurm_env()
    this_rank()
    parser = get_args_parser()
    parser.error = _refuse
    check_flags(words, set(parser._option_string_actions), schema)
    check_overrides(words, schema)
    words = _with_info(words, parser)
    asked = parser.parse_intermixed_args(words)
    if name not in SWEEPING and asked.multirun:
        raise InputError("--multirun", "", f"only {' and '.join(SWEEPING)} sweep")
    if asked.multirun and this_rank().size > 1:
        raise InputError("--multirun", "", "a sweep is started as one process, not as several")
    if asked.resolve and not asked.cfg:
        raise InputError("--resolve", "", "goes with --cfg job")
    return [word for word in words if word not in asked.overrides] + asked.overrides


def _with_info(words: list[str], parser: Any) -> list[str]:
    """Return the words with `--info` as `--info=all` where none of its values follows."""
    (info,) = [each for each in parser._actions if "--info" in each.option_strings]
    return [
        "--info=all" if word in info.option_strings and after not in info.choices else word
        for word, after in zip(words, [*words[1:], ""], strict=False)
    ]


def _refuse(message: str) -> NoReturn:
    flag, _, problem = message.removeprefix("argument ").partition(": ")
    flag = flag.split("/")[0] if flag[0] == "-" else f"'{flag}'"
    raise InputError(flag, "", problem or "not understood; --help lists the words")


def run_job(job: Callable, composed: DictConfig, schema: type) -> Any:
    # a launcher's process has streams of its own
    escape_what_cannot_be_shown()
    hydra_config = HydraConfig.get()
    # the words as they are: one may hold an interpolation
    task = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
    overrides = tuple(without_plus(task))
    # a benchmark's jobs keep what they find in folders of their own
    if hydra_config.mode == RunMode.MULTIRUN and schema is Config:
        return run_sweep_job(job, composed, overrides, hydra_config)
    try:
        check_groups(overrides)
        config = to_config(composed, schema)
        check_effects(config, overrides)
        return job(config, overrides=overrides, group=None)
    except Preempted as stop:
        report_stop(stop)
        raise
    except Exception as error:
        report_error(error, overrides, schema)
        sys.exit(BAD_INPUT if isinstance(error, BAD_INPUT_ERRORS) else FAILED)


def quieten_threads(config: Config | EvalConfig) -> None:
    """Keep torch's CPU threads from taking the cores of loading processes, where there are any.

    They wait awake for each other, by default for long. Torch reads the limit when it is loaded,
    which is later.
    """
    if READERS["needs"].is_met(config):
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
