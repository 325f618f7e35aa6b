"""The door of the three programs: composes a config with Hydra, answers bad input in one line.

The only file of the package that knows Hydra. Imports no torch, so that `--help`,
`--cfg job` and shell completion answer at once.
"""

import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mobilenet_exp.config.convert import to_config
from mobilenet_exp.config.explain import explain
from mobilenet_exp.config.help import help_text
from mobilenet_exp.config.schema import AnyConfig, BenchConfig, Config, EvalConfig
from mobilenet_exp.config.words import check_flags, check_words, keep_text
from mobilenet_exp.core.errors import InputError, RunError, in_plain_words
from mobilenet_exp.core.streams import discard_output, escape_what_cannot_be_shown
from mobilenet_exp.machine.launched import adopt_slurm, is_first, place
from mobilenet_exp.machine.preemption import Preempted, requeue
from mobilenet_exp.tracking.sweeps import Sweep, file_name

# in a wheel the YAML files lie in the package, in a checkout beside it
_HERE = Path(__file__).resolve().parent
CONF = next(each for each in (_HERE / "conf", _HERE.parent / "conf") if each.is_dir())
# name of the program: its file in conf/ and its schema
PROGRAMS = {
    "train": ("config", Config),
    "eval": ("eval", EvalConfig),
    "bench": ("bench", BenchConfig),
}
GROUPS = {
    "train": ("model", "optimizer", "schedule", "data", "train", "experiment", "hydra/launcher"),
    "eval": ("model", "data"),
    "bench": (),
}
BAD_INPUT, FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143
# done, but not with everything that was asked for
INCOMPLETE = 3
BAD_INPUT_ERRORS = (InputError, HydraException, OmegaConfBaseException, YAMLError)

for _program, (_, _schema) in PROGRAMS.items():
    ConfigStore.instance().store(f"{_program}_schema", _schema)


def compose(*overrides: str, program: str = "train", config_dir: str | None = None) -> AnyConfig:
    """Compose a checked configuration as the command line does, for use from Python.

    `compose("model=v2", "data=digits")` is what `python train.py model=v2 data=digits`
    trains; `program` is train, eval or bench, and `config_dir` a folder of YAML files of
    your own. Raises ValueError with the line that the command line would print.
    """
    if program not in PROGRAMS:
        raise InputError("program", program, f"not known; allowed: {', '.join(PROGRAMS)}")
    config_name, schema = PROGRAMS[program]
    words = [keep_text(word, schema) for word in overrides]
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise InputError("config_dir", config_dir, "no such folder")
        words.append(f"hydra.searchpath=['file://{Path(config_dir).resolve()}']")
    try:
        check_words(words, schema)
        _check_groups(words)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return to_config(hydra.compose(config_name, words), schema)
    except InputError:
        raise
    except Exception as error:
        if not _is_bad_input(error):
            raise
        raise ValueError(explain(error, words, schema)) from error


def program(name: str) -> Callable[[Callable], Callable[[], None]]:
    """Decorate `job(config, overrides, group)` into one of the three command-line programs.

    `overrides` are the words that made this job, `group` names its sweep or is None. The
    job's docstring opens its `--help`. Bad input ends in one line and exit code 2, a
    failed run in its traceback and exit code 1.
    """
    config_name, schema = PROGRAMS[name]

    def decorate(job: Callable) -> Callable[[], None]:
        @functools.wraps(job)
        def task(composed: DictConfig) -> Any:
            return _run_job(job, composed, schema)

        composing = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
        return lambda: _main(composing(task), name, job.__doc__ or "")

    return decorate


@program("train")
def train(config: Config, overrides: tuple[str, ...], group: str | None) -> dict[str, Any]:
    """Train one network, or sweep many, and set each beside its paper.

    python train.py
    python train.py model=v3_large optimizer=rmsprop
    python train.py -m model.width_mult=0.35,0.5,0.75,1.0
    python train.py experiment=paper_v2 data.root=IMAGENET
    python train.py model=v2 weights=FILE data=imagefolder data.root=FOLDER train.epochs=20

    The same command resumes a run that was cut off, and shows the results of a finished one.
    """
    from mobilenet_exp.training.job import train as job

    return job(config, overrides=overrides, group=group)


@program("eval")
def evaluate(config: EvalConfig, overrides: tuple[str, ...], group: str | None) -> None:
    """Score a run's checkpoint, or weights from anywhere; or classify photos.

    python eval.py checkpoint=runs/NAME/checkpoints/best.pt
    python eval.py model=v3_small weights=FILE data=imagenet data.root=IMAGENET
    python eval.py model=v2 weights=torchvision:IMAGENET1K_V2 data=imagenet data.root=IMAGENET
    python eval.py model=v3_small weights=FILE image=PHOTO_OR_FOLDER
    torchrun --nproc-per-node 2 eval.py checkpoint=runs/NAME/checkpoints/best.pt

    Exits with 3 where images were left out or are missing.
    """
    from mobilenet_exp.evaluation.job import evaluate as job

    results = job(config, overrides=overrides)
    if results["num_left_out"] or results["num_missing"]:
        sys.exit(INCOMPLETE)


@program("bench")
def bench(config: BenchConfig, overrides: tuple[str, ...], group: str | None) -> None:
    """Time the old V1 table's networks and ours side by side.

    python bench.py
    python bench.py models=[v2,v3_small]
    python bench.py batch_sizes=[1] rounds=21
    python bench.py models=[v1,v2] resolution=160
    python bench.py run.device=cuda
    """
    from mobilenet_exp.deploy.job import bench as job

    job(config)


class SweepCallback(Callback):
    """Gives a sweep its folder, before its first job; Hydra calls it, see conf/config.yaml."""

    # the sweep of this process, for the table at its end
    sweep: Sweep | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        words = list(OmegaConf.to_container(config.hydra.overrides.task, resolve=False))
        given = [word for word in config.hydra.overrides.hydra if "hydra.sweep.dir=" in word]
        folder = Path(config.hydra.sweep.dir)
        sweep = Sweep(folder) if given else Sweep.named_by(_varied(words), folder)
        with read_write(config), open_dict(config):
            config.hydra.sweep.dir = str(sweep.folder)
            # each job is composed anew, from these words
            quoted = str(sweep.folder).replace("\\", "\\\\").replace("'", "\\'")
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")
        try:
            group, planned = _plan(config, words)
        except HydraException:
            # the sweeper itself says what is wrong with its words
            group, planned = file_name(_varied(words)), []
        sweep.begin(group, planned)
        SweepCallback.sweep = sweep
        # jobs that a launcher starts in other processes must find this package
        places = [str(_HERE.parent), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))


def _plan(config: DictConfig, words: Iterable[str]) -> tuple[str, list[tuple[str, ...]]]:
    """Return a sweep's group, and the words of its jobs where no search finds them.

    The group names the keys that vary without their values: a sweep that is extended
    stays in it.
    """
    sweeper = config.hydra.sweeper
    params = sweeper.get("params") or {}
    all_words = [*(f"{key}={value}" for key, value in params.items()), *words]
    loader = GlobalHydra.instance().config_loader() if GlobalHydra.instance().hydra else None
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(all_words)
    typed = {str(each.input_line): each for each in parsed}
    names = [
        typed[word].key_or_group if typed[word].is_sweep_override() else word
        for word in _varied(list(typed))
    ]
    if not sweeper._target_.endswith("BasicSweeper"):
        return file_name(names), []
    batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return file_name(names), [tuple(job) for batch in batches for job in batch]


def _varied(words: list[str]) -> tuple[str, ...]:
    """Return the words that name a sweep: all but those that say how it runs."""
    return tuple(word for word in words if not word.lstrip("+~").startswith("run."))


def _main(composing: Callable[[], None], name: str, about: str) -> None:
    """Run a program from the command line, and exit with its code."""
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
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
        _print_error("interrupted; run the same command again to resume from the last checkpoint")
        code = INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        # jobs report their own errors, so this one arose while composing, or in a sweeper
        if SweepCallback.sweep and any(job["error"] for job in SweepCallback.sweep.jobs()):
            _print_error(f"the sweep ended early: {str(error).splitlines()[0]}")
            code = FAILED
        elif _is_bad_input(error) or not _is_ours(error):
            _print_error(explain(error, typed, schema))
            code = BAD_INPUT
        else:
            raise
    finally:
        sweep = SweepCallback.sweep
        if sweep and not code and not sweep.jobs():
            _print_error(f"{' '.join(_varied(typed))}: a sweep of no runs")
        sweep_code = _close_sweep(sweep) if sweep else 0
        code = code or sweep_code
    return code


def _check_command(name: str, words: list[str], schema: type) -> list[str]:
    """Return the words with Hydra's flags first, where alone it understands them.

    Raises InputError for flags that do not exist or do not fit, and for a place among
    processes that cannot be.
    """
    adopt_slurm()
    place()
    parser = get_args_parser()
    parser.error = _refuse
    check_flags(words, set(parser._option_string_actions), schema)
    check_words(words, schema)
    asked = parser.parse_intermixed_args(words)
    if name != "train" and asked.multirun:
        raise InputError("--multirun", "", "only train.py sweeps")
    if asked.multirun and place().size > 1:
        raise InputError("--multirun", "", "a sweep is started as one process, not as several")
    if asked.resolve and not asked.cfg:
        raise InputError("--resolve", "", "goes with --cfg job")
    return [word for word in words if word not in asked.overrides] + asked.overrides


def _refuse(message: str) -> NoReturn:
    flag, _, problem = message.removeprefix("argument ").partition(": ")
    flag = flag.split("/")[0] if flag[0] == "-" else f"'{flag}'"
    raise InputError(flag, "", problem or "not understood; --help lists the words")


def _is_ours(error: BaseException) -> bool:
    """Return whether our own code raised an error, and so has a defect."""
    innermost = traceback.extract_tb(error.__traceback__)[-1:]
    return any(Path(frame.filename).is_relative_to(_HERE) for frame in innermost)


def _check_groups(words: Iterable[str]) -> None:
    """Refuse a list for a group: Hydra would take its last option alone."""
    for word in words:
        key, _, value = word.partition("=")
        if (CONF / key).is_dir() and value.startswith("["):
            raise InputError(key, value, "takes one option; several are a sweep, which needs -m")


def _is_bad_input(error: Exception) -> bool:
    # Hydra raises a plain ValueError for a group's option that is no word
    return isinstance(error, BAD_INPUT_ERRORS) or "Config group" in str(error)


def _run_job(job: Callable, composed: DictConfig, schema: type) -> Any:
    # a launcher's process has streams of its own
    escape_what_cannot_be_shown()
    hydra_config = HydraConfig.get()
    # the words as they are: one may hold an interpolation
    overrides = tuple(OmegaConf.to_container(hydra_config.overrides.task, resolve=False))
    if hydra_config.mode == RunMode.MULTIRUN:
        return _run_sweep_job(job, composed, overrides, hydra_config)
    try:
        _check_groups(overrides)
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
    results: dict[str, Any] | None = None
    error_line: str | None = "interrupted"
    is_bad_input, is_stopped = False, True
    try:
        _check_groups(overrides)
        results = job(to_config(composed), overrides=overrides, group=sweep.group)
        error_line, is_stopped = None, False
    except Preempted as stop:
        error_line = stop.line
        _report_stop(stop)
        raise
    except Exception as error:
        error_line, is_stopped = _report(error, overrides, Config), False
        is_bad_input = isinstance(error, BAD_INPUT_ERRORS)
    finally:
        kind = {"is_bad_input": is_bad_input, "is_stopped": is_stopped}
        sweep.record(number, overrides, results, error_line, **kind)
    return results["top1"] if results else None


def _report_stop(stop: Preempted) -> None:
    """Say that a run was stopped and saved, and have a scheduler run it again."""
    # one process speaks, and asks, for all that share the job
    if is_first():
        print(stop.line, file=sys.stderr)
        if line := requeue(stop):
            print(line, file=sys.stderr)


def _close_sweep(sweep: Sweep) -> int:
    """Print the table of all jobs and return the exit code they add up to."""
    jobs = sweep.jobs()
    if jobs:
        from mobilenet_exp.tracking.terminal import print_sweep

        print_sweep(jobs, sweep.not_begun())
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


def _report(error: BaseException, overrides: tuple[str, ...], schema: type) -> str:
    """Print an error, with its traceback if no person was meant to read it; return its line."""
    error = in_plain_words(error)
    if isinstance(error, RunError):
        _print_error(str(error), is_own=error.is_own)
        return str(error)
    if not isinstance(error, BAD_INPUT_ERRORS):
        traceback.print_exception(error)
        return f"{type(error).__name__}: {error}".splitlines()[0]
    text = explain(error, list(overrides), schema)
    _print_error(text, is_own=getattr(error, "is_own", False))
    return text


def _print_error(text: str, *, is_own: bool = False) -> None:
    # of processes that share a job, the first says what they all know
    if is_own or is_first():
        print(f"error: {text}", file=sys.stderr)
