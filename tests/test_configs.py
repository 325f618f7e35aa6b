"""Every option composes, every word is checked, and a run is named by what it learns."""

import ast
import re
import shlex
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from mobilenet_exp import cli
from mobilenet_exp.config.convert import run_name, to_config, to_dict
from mobilenet_exp.config.explain import explain
from mobilenet_exp.config.schema import BenchConfig, Config, EvalConfig
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data.datasets import DATASETS
from mobilenet_exp.data.transforms import train_transform
from mobilenet_exp.models import build_model, list_models
from mobilenet_exp.training.optim import OPTIMIZERS, build_optimizer
from mobilenet_exp.training.schedule import SCHEDULES, build_schedule

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = [f"{path.parent.name}={path.stem}" for path in sorted((ROOT / "conf").glob("*/*.yaml"))]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_builds(compose_config, option):
    config = compose_config(option)
    options = to_dict(config)["model"]
    args = options.pop("args")
    options["width_mult"] = 0.25
    options["num_classes"] = 10
    model = build_model(**options, **args)
    optimizer = build_optimizer(model, **to_dict(config)["optimizer"])
    assert optimizer.param_groups[0]["lr"] == config.optimizer.lr
    build_schedule(
        **to_dict(config)["schedule"],
        lr=config.optimizer.lr,
        epochs=config.train.epochs,
        steps_per_epoch=2,
    )
    train_transform(config.data)


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("model", list_models()),
        ("optimizer", OPTIMIZERS.names()),
        ("schedule", SCHEDULES.names()),
        ("data", DATASETS.names()),
    ],
)
def test_a_group_offers_exactly_the_registered_names(compose_config, group, names):
    files = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
    assert files == set(names)
    for name in names:
        assert getattr(compose_config(f"{group}={name}"), group).name == name


@pytest.mark.parametrize(
    ("experiment", "expected"),
    [
        ("kuanwang_v3_large", ("kuanwang_v3_large", 150, "cosine", 0.05, 4e-5, 0.0, 256)),
        ("kuanwang_v3_small", ("kuanwang_v3_small", 150, "cosine", 0.05, 4e-5, 0.0, 256)),
        ("marvis_v1_sgd", ("v1", 90, "step", 0.1, 1e-4, 0.0, 256)),
    ],
)
def test_seed_experiments_hold_the_published_recipe(compose_config, experiment, expected):
    config = compose_config(f"experiment={experiment}")
    found = (
        config.model.name,
        config.train.epochs,
        config.schedule.name,
        config.optimizer.lr,
        config.optimizer.weight_decay,
        config.model.dropout,
        config.data.batch_size,
    )
    assert found == expected
    assert (config.data.name, config.data.resolution, config.model.stem_stride) == (
        "imagenet", 224, 2,
    )  # fmt: skip
    # the originals evaluated with running averages as they were
    assert config.train.precise_bn_batches == 0
    head = (ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text().splitlines()[:3]
    assert head[1].startswith(f"# python train.py experiment={experiment}")
    assert "Answers to" in head[2]


def test_command_line_wins_over_experiment(compose_config):
    config = compose_config("experiment=marvis_v1_sgd", "data=digits", "optimizer.lr=0.3")
    assert (config.data.name, config.optimizer.lr, config.train.epochs) == ("digits", 0.3, 90)


def _written_commands() -> list[str]:
    texts = [ROOT / "README.md", *sorted((ROOT / "conf").rglob("*.yaml")), *ROOT.glob("*.py")]
    pattern = re.compile(
        r"^\s*(?:#\s*|\$\s*)?(?:\S*python3? )((?:train|eval|bench)\.py[^#:;|`\n]*)", re.M
    )
    return sorted(
        {match[1].strip() for text in texts for match in pattern.finditer(text.read_text())}
    )


@pytest.mark.parametrize("command", _written_commands())
def test_every_command_in_text_composes(command):
    script, *words = shlex.split(command)
    # flags compose nothing, and brackets before the = are prose
    words = [word for word in words if "=" in word and "[" not in word.split("=")[0]]
    name = {"train.py": "config", "eval.py": "eval", "bench.py": "bench"}[script]
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        # of a sweep, the first value; an ellipsis in brackets is prose
        first = [re.sub(r"=([^\[,]*),.*", r"=\1", word) for word in words]
        to_config(compose(name, first), cli.SCHEMAS[name])


def test_commands_are_found():
    commands = " ".join(_written_commands())
    for needed in (
        "model=v3_large optimizer=rmsprop",
        "-m model.width_mult",
        "eval.py",
        "bench.py",
    ):
        assert needed in commands


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("model.widht_mult=1", "model.widht_mult=1: no such key; did you mean model.width_mult?"),
        ("+model.widht=1", "model.widht=1: no such key"),
        ("+foo=1", "foo=1: no such key; allowed in the config: model, optimizer"),
        ("optimzer=sgd", "optimzer=sgd: no such key; did you mean optimizer?"),
        ("model=v9", "model=v9: not known; allowed: kuanwang_v3_large, kuanwang_v3_small, v1"),
        ("model=3", "model=3: must be the name of an option"),
        ("experiment=nope", "experiment=nope: not known; allowed: dli14_v2"),
        ("model.width_mult=abc", "model.width_mult=abc: must be a number"),
        ("train.epochs=1.5", "train.epochs=1.5: must be a whole number"),
        ("data.download=7.5", "data.download=7.5: must be true or false"),
        ("model.width_mult=0", "model.width_mult=0.0: must be a number > 0"),
        ("model.width_mult=nan", "model.width_mult=nan: must be a number > 0"),
        ("model.width_mult=1,2", "model.width_mult=1,2: several values are a sweep"),
        ("train.epochs=0", "train.epochs=0: must be a whole number > 0"),
        ("data.resolution=31", "data.resolution=31: must be a whole number of pixels >= 32"),
        ("run.device=tpu", "run.device=tpu: not known; allowed: auto, cpu, cuda, mps"),
        ("run.wandb=maybe", "run.wandb=maybe: not known; allowed: auto, online"),
        ("optimizer.args.beta=1", "+optimizer.args.beta=... adds an argument"),
        ("model.width_mult=null", "model.width_mult=null: must be a number"),
        ("model.args=3", "model.args=3: must be a mapping, as {a:1}"),
        ("data.mean=0.5", "data.mean=0.5: must be a list, as [a,b]"),
        ("model.num_classes=x", "model.num_classes=x: must be a whole number or null"),
        ("model=", "model=: not known; allowed: kuanwang_v3_large"),
        ("train.seed=99999999999999999999", "train.seed=99999999999999999999: must be a whole"),
        ("run.root=''", "run.root=: must name a folder"),
        ("foo", "foo: not understood"),
        ("foo=bar=baz", "foo=bar=baz: not understood"),
    ],
)
def test_bad_input_is_explained_in_one_line(words, line):
    with (
        pytest.raises(Exception) as caught,  # noqa: PT011 - of several libraries
        initialize_config_dir(str(cli.CONF), version_base="1.3"),
    ):
        to_config(compose("config", [words]), Config)
    explained = explain(caught.value, [words])
    assert line in explained
    assert "\n" not in explained


def test_a_missing_value_is_named():
    with (
        initialize_config_dir(str(cli.CONF), version_base="1.3"),
        pytest.raises(InputError, match="train.epochs=\\?\\?\\?: must be given"),
    ):
        to_config(compose("config", ["train.epochs=???"]))


def test_run_name_follows_what_is_learned(compose_config):
    name = run_name(compose_config())
    assert re.fullmatch(r"v3_small-w1-r32-digits-sgd-s0-[0-9a-f]{8}", name)
    assert run_name(compose_config("model.width_mult=1")) == name
    for place in ("run.device=cpu", "run.workers=3", "data.root=elsewhere", "run.root=there"):
        assert run_name(compose_config(place)) == name
    for change in ("train.seed=1", "optimizer.lr=0.1", "schedule=step", "data.batch_size=32"):
        assert run_name(compose_config(change)) != name


def test_folders_of_images_are_told_apart_by_their_own_name(compose_config):
    def name(root):
        return run_name(compose_config("data=imagefolder", f"data.root={root}"))

    assert name("/disk/flowers") == name("/mnt/flowers/") != name("/disk/birds")


def test_a_saved_config_comes_back_the_same(compose_config):
    config = compose_config("model=v1", "optimizer=adamw")
    assert to_config(to_dict(config)) == config


@pytest.mark.parametrize("schema", [Config, EvalConfig, BenchConfig])
def test_every_field_is_read_somewhere(schema):
    """An attribute of that name is taken outside config.py, or the section is passed whole."""
    whole = {"ModelConfig", "EvalModelConfig", "OptimizerConfig", "ScheduleConfig"}
    read = set()
    for path in (ROOT / "mobilenet_exp").rglob("*.py"):
        if path.name not in ("config.py", "rules.py"):
            tree = ast.parse(path.read_text())
            read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}

    def check(section: type) -> None:
        for entry in fields(section):
            if is_dataclass(entry.type):
                check(entry.type)
            elif section.__name__ not in whole:
                assert entry.name in read, f"{section.__name__}.{entry.name} has no reader"

    check(schema)
