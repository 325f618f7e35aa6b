"""Every option composes and builds; every command in a text composes; data speaks of data."""

import re
import shlex
from dataclasses import asdict, fields, is_dataclass

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from programs import ROOT

from mobilenet_exp import compose
from mobilenet_exp.cli import CONF, PROGRAMS
from mobilenet_exp.config.help import field_comments, help_text
from mobilenet_exp.config.schema import BenchConfig, Config, DataConfig, EvalConfig
from mobilenet_exp.data.augment import TrainTransform
from mobilenet_exp.datasets.sets import DATASETS
from mobilenet_exp.models import list_models
from mobilenet_exp.models.build import config_model
from mobilenet_exp.training.optim import OPTIMIZERS, build_optimizer
from mobilenet_exp.training.schedule import SCHEDULES, build_schedule

# each option of each group, as `model=v2` or `experiment=rmsprop_story/sgd`
OPTIONS = [
    str(path.relative_to(CONF).with_suffix("")).replace("/", "=", 1)
    for path in sorted(CONF.glob("*/**/*.yaml"))
    if path.relative_to(CONF).parts[0] not in ("train", "hydra")
]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_builds(option):
    is_peer = option == "model=timm" or option.startswith("model=peers/")
    word = "model.args.arch=lcnet_035" if is_peer else "model.width_mult=0.25"
    config = compose(option, word)
    model = config_model(config.model, 10)
    optimizer = build_optimizer(model, **asdict(config)["optimizer"])
    assert optimizer.param_groups[0]["lr"] == config.optimizer.lr
    build_schedule(
        **asdict(config)["schedule"],
        lr=config.optimizer.lr,
        epochs=config.train.epochs,
        steps_per_epoch=2,
    )
    TrainTransform(config.data, 32)


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("model", [*list_models(), "timm"]),
        ("optimizer", OPTIMIZERS.names()),
        ("schedule", SCHEDULES.names()),
        ("data", DATASETS.names()),
    ],
)
def test_a_group_offers_exactly_the_registered_names(group, names):
    files = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
    assert files == set(names)
    for name in names:
        arch = ["model.args.arch=lcnet_035"] if name == "timm" else []
        assert getattr(compose(f"{group}={name}", *arch), group).name == name


def test_data_files_speak_of_data_and_bring_their_training_along():
    """What is trained for how long stands in conf/train/, chosen by the data."""
    for path in (ROOT / "conf" / "data").glob("*.yaml"):
        assert "@package" not in path.read_text()
        assert (ROOT / "conf" / "train" / path.name).exists()
    config = compose("data=cifar10")
    assert (config.train.epochs, config.data.batch_size, config.data.augment) == (
        100, 128, "pad_crop_flip",
    )  # fmt: skip
    # an evaluation takes the same files and none of that
    data = compose("data=cifar10", program="eval").data
    assert (data.name, data.batch_size, data.resolution) == ("cifar10", None, None)


@pytest.mark.parametrize(
    ("words", "stride"),
    [
        ((), 1),
        (("data=cifar10",), 1),
        (("data=fake",), 2),
        (("data.resolution=63",), 1),
        (("data.resolution=64",), 2),
        (("model.stem_stride=2",), 2),
        # weights bring theirs
        (("weights=some.pt",), None),
    ],
)
def test_the_stem_s_stride_follows_from_the_side(words, stride):
    assert compose(*words).model.stem_stride == stride


@pytest.mark.parametrize(
    ("experiment", "expected"),
    [
        ("kuanwang_v3_large", ("kuanwang_v3_large", 150, "cosine", 0.05, 4e-5, 0.0, 256)),
        ("kuanwang_v3_small", ("kuanwang_v3_small", 150, "cosine", 0.05, 4e-5, 0.0, 256)),
        ("marvis_v1_sgd", ("v1", 90, "step", 0.1, 1e-4, 0.0, 256)),
    ],
)
def test_the_first_repositories_recipes_hold_what_was_published(experiment, expected):
    config = compose(f"experiment={experiment}")
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


def test_command_line_wins_over_experiment():
    config = compose("experiment=marvis_v1_sgd", "data=digits", "optimizer.lr=0.3")
    assert (config.data.name, config.optimizer.lr, config.train.epochs) == ("digits", 0.3, 90)


def test_a_section_built_in_python_has_no_open_value():
    assert "???" not in vars(DataConfig(name="fake")).values()


TEXTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    ROOT / "mobilenet_exp" / "cli.py",
    *sorted((ROOT / "conf").rglob("*.yaml")),
]


def _written_commands() -> list[str]:
    pattern = re.compile(
        r"^\s*(?:#\s*|\$\s*)?(?:\S*python3? )"
        # a colon ends a command unless it is quoted or within a word
        r"((?:(?:train|eval|bench)\.py|-m mobilenet_exp (?:pack|export))"
        r"(?:'[^'\n]*'|:(?=\w)|[^#:;|`\n])*)",
        re.M,
    )
    return sorted(
        {match[1].strip() for text in TEXTS for match in pattern.finditer(text.read_text())}
    )


COMMANDS = [command for command in _written_commands() if "--config-dir" not in command]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_in_text_composes(command):
    script, *words = shlex.split(command.removeprefix("-m mobilenet_exp "))
    # flags compose nothing, and brackets before the = are prose
    words = [word for word in words if "=" in word and "[" not in word.split("=")[0]]
    # of a sweep, the first value; an ellipsis in brackets is prose
    first = [re.sub(r"=([^\[,]*),.*", r"=\1", word) for word in words]
    compose(*first, program=script.removesuffix(".py"))


def test_options_of_packed_sets_are_taken_as_the_documents_write_them():
    text = (ROOT / "docs" / "data.md").read_text()
    words = set(re.findall(r"`(data\.args\.\w+=\w+)`", text)) | {"data.args.cache_gb=5"}
    assert len(words) >= 3
    for word in sorted(words):
        for program, more in (("train", ()), ("eval", ("model=v2", "weights=x"))):
            config = compose("data=packed", "data.root=x", *more, word, program=program)
            assert word.partition("=")[0].removeprefix("data.args.") in config.data.args


def test_commands_are_found():
    commands = " ".join(_written_commands())
    for needed in (
        "model=v3_large optimizer=rmsprop",
        "-m mobilenet_exp pack data=imagenet",
        "-m mobilenet_exp export checkpoint=FILE",
        "-m model.width_mult",
        "eval.py",
        "bench.py",
    ):
        assert needed in commands


@pytest.mark.parametrize("schema", [Config, EvalConfig, BenchConfig])
def test_every_key_has_a_comment_and_stands_in_the_help(schema):
    name = {Config: "train", EvalConfig: "eval", BenchConfig: "bench"}[schema]
    text = help_text("what it does", schema, [CONF], PROGRAMS[name].groups)

    def check(section: type, prefix: str) -> None:
        comments = field_comments(section)
        for entry in fields(section):
            key = f"{prefix}{entry.name}"
            if is_dataclass(entry.type):
                check(entry.type, f"{key}.")
            else:
                assert len(comments[entry.name]) > 10, f"{key} has no comment"
                assert f"  {key}=" in text

    check(schema, "")
    for group in PROGRAMS[name].groups:
        for path in (ROOT / "conf" / group).rglob("*.yaml"):
            assert path.stem in text


def test_composing_within_a_program_that_uses_hydra_leaves_hydra_as_it_was(tmp_path):
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        theirs = GlobalHydra.instance().hydra
        assert compose("model=v2").model.name == "v2"
        with pytest.raises(ValueError, match="model=v9: not known"):
            compose("model=v9")
        assert GlobalHydra.instance().hydra is theirs
    assert not GlobalHydra.instance().is_initialized()


def test_a_yaml_file_with_a_byte_order_mark_is_read(tmp_path):
    """As editors on Windows write it."""
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ntrain:\n  epochs: 3\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text, encoding="utf-8-sig")
    assert compose("experiment=mine", config_dir=str(tmp_path)).train.epochs == 3
