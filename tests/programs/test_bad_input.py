"""Hundreds of bad commands: each is one line that names the key, exit code 2, and no files.

Most are grown from the schema, so that a new key is covered by itself. They run in this
process, as a program does.
"""

import contextlib
import gc
import io
import os
import signal
import sys
from dataclasses import fields, is_dataclass

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from mobilenet_exp import cli
from mobilenet_exp.cli import PROGRAMS
from mobilenet_exp.command.sweeping import SweepCallback
from mobilenet_exp.deploy import job as deploy_job
from mobilenet_exp.evaluation import job as evaluation_job
from mobilenet_exp.models import MODELS
from mobilenet_exp.training import train as training_job

RUN = {"train": cli.train, "eval": cli.evaluate, "bench": cli.bench}
JOBS = {
    "train": (training_job, "train"),
    "eval": (evaluation_job, "evaluate"),
    "bench": (deploy_job, "bench"),
}
# what no range and no type means
WRONG = {
    int: ("x", "1.5", "[1]"),
    float: ("x", "[1]", "true"),
    bool: ("7.5", "maybe"),
    str: ("[a,b]",),
    list: ("3", "{a:1}"),
    dict: ("3", "[a]"),
}
BEYOND = {int: (-1, 0, 10**13), float: (-1.0, float("nan"), 1e30, 0.0), str: (" ", "no/such?"),
          list: ([], [-1.0] * 3, [0])}  # fmt: skip


@pytest.fixture(autouse=True)
def _as_a_program(tmp_path, monkeypatch):
    """A folder of its own, and nothing left behind in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    # composing makes so much garbage that looking through everything else would be most of it
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    sys.modules.pop("tiny_net", None)
    MODELS._builders.pop("tiny", None)


def _command(program: str, *words: str) -> tuple[int, str, str]:
    """Run a program on words; return its exit code and what it printed."""
    GlobalHydra.instance().clear()
    SweepCallback.sweep = None
    out, errors, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [f"{program}.py", *words]
    code: object = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            RUN[program]()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = argv
    return code, out.getvalue(), errors.getvalue()


def _assert_refused(program: str, *words: str, named: str) -> None:
    code, out, errors = _command(program, *words)
    told = f"{program} {' '.join(words)!r}: exit {code}, {out!r}, {errors!r}"
    assert code == 2, told
    assert errors.startswith("error: "), told
    assert errors.count("\n") == 1, told
    assert len(errors) < 1000, told
    assert named in errors, told
    assert out == "", told
    assert os.listdir() == [], told


def _keys(schema: type, prefix: str = ""):
    for entry in fields(schema):
        if is_dataclass(entry.type):
            yield from _keys(entry.type, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}", entry


def _kind(annotation) -> tuple[type, bool]:
    """Return the bare type, and whether null is allowed."""
    members = getattr(annotation, "__args__", ()) if "|" in str(annotation) else (annotation,)
    (kind,) = [each for each in members if each is not type(None)]
    return getattr(kind, "__origin__", kind), type(None) in members


def _grown(program: str):
    """Yield bad commands for each key, and what their line must name."""
    for number, (key, entry) in enumerate(_keys(PROGRAMS[program].schema)):
        kind, is_optional = _kind(entry.type)
        wrong = list(WRONG[kind])
        wrong += ["null"] if not is_optional and kind in (int, float) else []
        beyond = [each for each in BEYOND.get(kind, ()) if not _allows(entry, each)]
        values = [_shown(each) for each in beyond] if beyond and number % 2 else wrong
        yield (f"{key}={values[number % len(values)]}",), key
        section, _, name = key.rpartition(".")
        last = name + "x"
        yield (
            ((f"{section}.{last}=1" if section else f"{last}=1",), last),
            ((f"{key}=a,b",), f"{key}=a,b"),
            ((f"~{key}",), key),
            ((f"{key}=${{no.such.key}}",), key),
            ((f"--{name.replace('_', '-')}", "1"), name.replace("_", "-")),
            ((f"{key}=[1",), key),
        )[number % 6]


def _allows(entry, value) -> bool:
    try:
        return "range" not in entry.metadata or bool(entry.metadata["range"].allows(value))
    except (TypeError, AttributeError):
        return True


def _shown(value) -> str:
    return str(value).replace(" ", "") if isinstance(value, list) else f"{value}"


@pytest.mark.parametrize("program", RUN)
def test_commands_grown_from_the_schema(program, monkeypatch):
    def accepted(*_, **__):
        raise AssertionError("a bad command was accepted")

    for module, name in JOBS.values():
        monkeypatch.setattr(module, name, accepted)
    commands = list(_grown(program))
    assert len(commands) > {"train": 160, "eval": 70, "bench": 15}[program]
    for words, named in commands:
        _assert_refused(program, *words, named=named)


TINY = ("model.name=tiny", "run.imports=[tiny_net]", "data=fake", "data.resolution=32")


@pytest.mark.parametrize(
    ("program", "words", "named"),
    [
        # values that cannot be meant
        ("train", ("model.num_classes=100000000000",), "model.num_classes=100000000000: must be"),
        ("train", ("model.width_mult=1000000",), "model.width_mult=1000000.0: must be a number"),
        ("train", ("model.width_mult=1e-9",), "model.width_mult=1e-09: must be a number from"),
        ("train", ("train.bn=frozen",), "train.bn=frozen: keeps the statistics of given weights"),
        ("train", ("optimizer.args.momentum=nan",), "optimizer.args.momentum=nan: must be a num"),
        ("train", ("schedule=step", "schedule.args.gamma=inf"), "schedule.args.gamma=inf: must"),
        ("train", ("run.wandb_project=a/b",), "run.wandb_project=a/b: must be 1 to 128 charac"),
        ("train", ("run.wandb=online", *TINY), "run.wandb=online: no W&B key here; `wandb login`"),
        ("train", ("train.trainable=classifier",), "train.trainable=classifier: trains only the"),
        ("train", ("data.val_share=0.5",), "data.val_share=0.5: is only for data=imagefolder"),
        ("train", ("data=imagefolder", "data.root=nowhere"), "data.root=nowhere: has no folder"),
        ("train", ("weights=nowhere.pth",), "weights=nowhere.pth: cannot be read: No such file"),
        ("train", ("weights_key=x",), "weights_key=x: has no effect here; it needs weights=FILE"),
        ("train", ("distill.teacher=nowhere.pt",), "distill.teacher=nowhere.pt: no such file"),
        ("train", ("run.root=/dev/null/x", *TINY), "run.root=/dev/null/x: cannot hold the run's"),
        ("train", ("run.imports=[nowhere]",), "run.imports=nowhere: cannot be imported: Module"),
        # flags
        ("train", ("--lr", "0.1"), "--lr: keys are given as KEY=VALUE, without --; did you mean "
         "optimizer.lr=0.1?"),
        ("train", ("--epochs=3",), "--epochs: keys are given as KEY=VALUE, without --; did you m"),
        ("train", ("--frobnicate",), "--frobnicate: keys are given as KEY=VALUE"),
        ("train", ("-x",), "-x: keys are given as KEY=VALUE"),
        ("train", ("--resolve",), "--resolve: goes with --cfg job"),
        ("train", ("--cfg",), "--cfg: expected one argument"),
        ("train", ("--cfg", "foo"), "--cfg: invalid choice: 'foo'"),
        ("train", ("--config-name", "nope"), "nope"),
        ("train", ("--config-name",), "--config-name: expected one argument"),
        ("train", ("--config-dir", "nowhere"), "nowhere"),
        ("eval", ("-m", "data=digits"), "--multirun: only train and bench sweep"),
        # Hydra's own settings
        ("train", ("hydra.run.dir=/dev/null/x",), "/dev/null/x"),
        ("train", ("-m", "hydra/sweeper=nope", "train.seed=1,2"), "hydra/sweeper=nope"),
        ("train", ("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=x"), "n_trials=x"),
        ("train", ("-m", "hydra/sweeper=optuna", "hydra.sweeper.direction=up", "train.seed=1,2"),
         "direction"),
        ("train", ("-m", "hydra/launcher=nope", "train.seed=1,2"), "hydra/launcher=nope"),
        ("train", ("-m", "train.seed=range(0)"), "range(0)"),
        ("train", ("-m", "train.seed=choice()"), "choice()"),
        ("train", ("train.seed=${oc.env:NOWHERE}",), "train.seed=${oc.env:NOWHERE}"),
        ("train", ("train.seed=${nope:1}",), "train.seed=${nope:1}"),
        ("train", ("train.seed=${train.seed}",), "train.seed=${train.seed}: refers to"),
        ("train", ("model@x=v2",), "x"),
        ("train", ("",), "'': an empty word; keys are given as KEY=VALUE"),
        ("train", ("=",), "=: no such key"),
        ("train", ("model",), "model: not understood"),
        ("train", ("model.width_mult",), "model.width_mult: not understood"),
        # evaluation
        ("eval", (), "checkpoint=null: give exactly one of checkpoint=FILE and weights=FILE"),
        ("eval", ("checkpoint=.",), "checkpoint=.: is a folder; did you mean checkpoints/best.pt?"),
        ("eval", ("weights=nowhere.pth",), "model=null: weights= needs model="),
        ("eval", ("weights=torchvision:NOPE", "model=v2"), "weights=torchvision:NOPE: not known"),
        ("eval", ("weights=timm:nope", "model=v2"), "weights=timm:nope: not known to timm"),
        # the bench
        ("bench", ("models=[]",), "models=[]: must name at least one model"),
        ("bench", ("models=[torchvision:nope]",), "models=torchvision:nope: not a classifier of"),
        ("bench", ("models=[{width_mult:0.5}]",), "models={'width_mult': 0.5}: needs a name"),
        ("bench", ("runtimes=[eager,eager]",), "runtimes=['eager', 'eager']: must name at least"),
        ("bench", ("method=seed",), "method=seed: not known; allowed: rounds, one_call"),
        ("bench", ("batch_sizes=[0]",), "batch_sizes=[0]: must be whole numbers"),
        ("bench", ("models=[v1]", "resolution=100000"), "resolution=100000: must be a whole"),
    ],
)  # fmt: skip
def test_commands_that_people_typed(program, words, named):
    _assert_refused(program, *words, named=named)


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"RANK": "5", "WORLD_SIZE": "2"}, "RANK=5: must be a whole number from 0 to 1, below"),
        ({"RANK": "0"}, "WORLD_SIZE=null: must be set where RANK or WORLD_SIZE is"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR=null: must be set with the rest of"),
        ({"WANDB_MODE": "maybe"}, "WANDB_MODE=maybe: not known; allowed: online, offline, disa"),
    ],
)
def test_variables_of_the_environment_that_contradict(variables, named, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    _assert_refused("train", *TINY, "train.epochs=1", named=named)


def test_sizes_that_memory_does_not_hold_are_one_line(monkeypatch):
    sizes = ("resolution=8192", "batch_sizes=[1000000]", "models=[v3_small]", "rounds=1")
    code, out, errors = _command("bench", *sizes)
    assert (code, out) == (1, "")
    assert errors.startswith("error: memory does not suffice")
    assert errors.count("\n") == 1
    assert torch.get_num_threads() > 0


@pytest.mark.parametrize("words", [("--info",), ("--info", "all"), ("-i",), ("--info=config",)])
def test_info_is_understood_anywhere(words):
    code, _, errors = _command("train", "model=v2", "optimizer.lr=0.1", *words)
    assert (code, errors) == (0, "")
    code, _, errors = _command("train", *words, "model=v2")
    assert (code, errors) == (0, "")
