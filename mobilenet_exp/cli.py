"""The programs: `train`, `evaluate`, `bench`, `pack`, `export`; `compose` for Python.

Imports no torch, so that `--help`, `--cfg job` and shell completion answer at once. A command
goes from train.py to `command.program.Program`, whose job is `train` below, and from there to
`training.train.train`.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from mobilenet_exp.command.errors import INCOMPLETE, is_bad_input
from mobilenet_exp.command.program import CONF, Program
from mobilenet_exp.config.convert import check_effects, to_config
from mobilenet_exp.config.explain import explain
from mobilenet_exp.config.overrides import check_overrides, keep_text
from mobilenet_exp.config.schema import (
    PREPARATION,
    AnyConfig,
    BenchConfig,
    Config,
    EvalConfig,
    ExportConfig,
    PackConfig,
)
from mobilenet_exp.core.errors import InputError

PROGRAMS: dict[str, Program] = {}


def program(
    name: str,
    schema: type,
    *,
    conf: str = "",
    groups: tuple[str, ...] = (),
    can_sweep: bool = False,
) -> Callable[[Callable], Program]:
    """Turn a job into a program; `conf` names its file in conf/ if that is not `name`."""

    def make(job: Callable) -> Program:
        made = Program(name, conf or name, schema, job, groups, can_sweep)
        PROGRAMS[name] = made
        return made

    return make


def compose(*overrides: str, program: str = "train", config_dir: str | None = None) -> AnyConfig:
    """Compose a checked configuration as the command line does, for use from Python.

    `compose("model=v2", "data=digits")` is what `python train.py model=v2 data=digits`
    trains; `program` is train, eval, bench, pack or export, and `config_dir` a folder of YAML
    files of your own. Raises ValueError with the line that the command line would print.
    """
    if program not in PROGRAMS:
        raise InputError("program", program, f"not known; allowed: {', '.join(PROGRAMS)}")
    asked = PROGRAMS[program]
    arguments = [keep_text(each, asked.schema) for each in overrides]
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise InputError("config_dir", config_dir, "no such folder")
        arguments.append(f"hydra.searchpath=['file://{Path(config_dir).resolve()}']")
    try:
        check_overrides(arguments, asked.schema, asked.groups)
        with _own_hydra():
            config = to_config(hydra.compose(asked.conf, arguments), asked.schema)
        check_effects(config, overrides)
        return config
    except InputError:
        raise
    except Exception as error:
        if not is_bad_input(error):
            raise
        raise ValueError(explain(error, arguments, asked.schema)) from error


@contextlib.contextmanager
def _own_hydra() -> Iterator[None]:
    """Point Hydra at conf/ in this block; the Hydra of a surrounding program is kept."""
    running = GlobalHydra.instance()
    kept, running.hydra = running.hydra, None
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = kept


@program(
    "train",
    Config,
    conf="config",
    groups=("model", "optimizer", "schedule", "data", "train", "experiment", "hydra/launcher"),
    can_sweep=True,
)
def train(config: Config, overrides: tuple[str, ...], group: str | None) -> dict[str, Any]:
    """Train one network, or a sweep of many, and compare each with its paper.

    python train.py
    python train.py model=v3_large optimizer=rmsprop
    python train.py -m model.width_mult=0.35,0.5,0.75,1.0
    python train.py experiment=paper_v2 data.root=IMAGENET
    python train.py model=v2 weights=FILE data=imagefolder data.root=FOLDER train.epochs=20

    The same command resumes an interrupted run, and shows the results of a finished one.
    """
    from mobilenet_exp.training.train import train as job

    return job(config, overrides=overrides, group=group)


@program("eval", EvalConfig, groups=("model", "data"))
def evaluate(config: EvalConfig, overrides: tuple[str, ...], group: str | None) -> None:
    """Score a run's checkpoint, or weights of a file, torchvision or timm; or classify photos.

    python eval.py checkpoint=runs/NAME/checkpoints/best.pt
    python eval.py model=v3_small weights=FILE data=imagenet data.root=IMAGENET
    python eval.py model=v2 weights=torchvision:IMAGENET1K_V2 data=imagenet data.root=IMAGENET
    python eval.py model=v3_small weights=FILE image=PHOTO_OR_FOLDER
    torchrun --nproc-per-node 2 eval.py checkpoint=runs/NAME/checkpoints/best.pt

    Exits with code 3 if images were left out or are missing.
    """
    from mobilenet_exp.evaluation.job import evaluate as job

    results = job(config, overrides=overrides)
    if results["num_left_out"] or results["num_missing"]:
        sys.exit(INCOMPLETE)


@program("bench", BenchConfig, can_sweep=True)
def bench(config: BenchConfig, overrides: tuple[str, ...], group: str | None) -> None:
    """Time networks: those of the old V1 repository's table and of this repository, or others.

    python bench.py
    python bench.py models=[v3_small,timm:efficientnet_lite0,runs/NAME/checkpoints/best.pt]
    python bench.py 'models=[v2,{name: v2, width_mult: 0.5, resolution: 160}]' batch_sizes=[1]
    python bench.py runtimes=[eager,folded,compiled,onnxruntime,openvino] rounds=21
    python bench.py models=[v3_large] layers=v3_large
    python bench.py method=one_call
    python bench.py run.device=cuda run.precision=bfloat16 runtimes=[eager,folded,cuda_graphs]
    """
    from mobilenet_exp.deploy.job import bench as job

    job(config, overrides=overrides)


@program("pack", PackConfig, groups=("data",))
def pack(config: PackConfig, overrides: tuple[str, ...], group: str | None) -> None:
    """Pack folders of images into shards: fast to read in any order, also over a network.

    python -m mobilenet_exp pack data=imagefolder data.root=IMAGES out=FOLDER
    python -m mobilenet_exp pack data=imagenet data.root=IMAGENET out=FOLDER side=256

    The same command continues an interrupted packing. To train on the shards:
    python train.py data=packed data.root=FOLDER
    """
    for word in overrides:
        key, _, value = word.lstrip("+").partition("=")
        if key.removeprefix("data.") in PREPARATION:
            raise InputError(
                key, value, "belongs to the command that reads the packed set, not to this one"
            )
    from mobilenet_exp.datasets.packed.packing import pack as job

    job(config)


@program("export", ExportConfig, groups=("model", "data"))
def export(config: ExportConfig, overrides: tuple[str, ...], group: str | None) -> None:
    """Export a trained network to a file for another runtime, and check the file's outputs.

    python -m mobilenet_exp export checkpoint=runs/NAME/checkpoints/best.pt
    python -m mobilenet_exp export checkpoint=FILE format=openvino out=FILE.xml
    python -m mobilenet_exp export model=v3_small weights=FILE format=torch_export

    To score the file: python eval.py weights=FILE.onnx data=DATA
    """
    from mobilenet_exp.deploy.export import export as job

    job(config)
