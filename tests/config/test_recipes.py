"""Every recipe runs, small; says what it answers to; holds its published figures."""

import re
from dataclasses import asdict

import pytest
import torch
from programs import ROOT

from mobilenet_exp import train
from mobilenet_exp.config.identity import run_name
from mobilenet_exp.training.train import build_state

FOLDER = ROOT / "conf" / "experiment"

SWEEPS = ("families", "width_sweep", "lr_search")

RECIPES = sorted(
    str(path.relative_to(FOLDER).with_suffix(""))
    for path in FOLDER.rglob("*.yaml")
    if path.stem not in SWEEPS
)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_small(compose_config, tmp_path, name):
    config = compose_config(
        f"experiment={name}", "run.smoke=true", "run.wandb=disabled", f"run.root={tmp_path}"
    )
    torch.set_num_threads(1)
    results = train(config)
    assert results["epochs"] == 2
    assert results["data"] == "fake"
    # of the recipe's own net, not of a narrower one
    assert results["model"] == config.model.name
    assert (tmp_path / results["name"] / "checkpoints" / "last.pt").exists()


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_opens_with_its_command_its_row_and_what_is_not_known(path):
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    name = str(path.relative_to(FOLDER).with_suffix(""))
    assert head[0] == "# @package _global_"
    assert head[1].startswith(f"# python train.py experiment={name}")
    assert any(line.startswith("# Answers to: ") for line in head)
    unknown = r"# (Not (known|published)|Known and not known|Published, not|Published and not)"
    assert any(re.match(unknown, line) for line in head)


@pytest.mark.parametrize(
    ("recipe", "source"),
    [
        ("marvis_v1_rmsprop_from_sgd", "marvis_v1_sgd"),
        ("rmsprop_story/from_sgd", "rmsprop_story/sgd"),
    ],
)
def test_a_recipe_that_starts_from_another_names_its_folder(compose_config, recipe, source):
    weights = compose_config(f"experiment={recipe}").weights
    folder = run_name(compose_config(f"experiment={source}"))
    assert weights == f"runs/{folder}/checkpoints/best.pt"


# top-1 and top-5 aside, what each source says and a typing error would change
PUBLISHED = {
    "marvis_v1_sgd": (90, 256, 0.1, 1e-4),
    "paper_v2": (300, 96, 0.045, 4e-5),
    "paper_v3_large": (600, 4096, 0.1, 1e-5),
    "paper_v3_small": (600, 4096, 0.1, 1e-5),
    "paper_v4_conv_small": (9600, 4096, 0.002, 0.01),
    "paper_v4_conv_medium": (500, 4096, 0.004, 0.1),
    "torchvision_v2": (300, 256, 0.045, 4e-5),
    "torchvision_v2_new": (600, 1024, 0.5, 2e-5),
    "torchvision_v3_large": (600, 1024, 0.064, 1e-5),
    "timm_v3_large": (600, 1024, 0.064, 1e-5),
    "dli14_v2": (150, 256, 0.05, 4e-5),
    "dli14_v2_long": (250, 1024, 0.4, 4e-5),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_holds_its_published_figures(compose_config, name):
    config = compose_config(f"experiment={name}")
    found = (
        config.train.epochs,
        config.data.batch_size,
        config.optimizer.lr,
        config.optimizer.weight_decay,
    )
    assert found == PUBLISHED[name]


# dotted keys of a config and what the sources say
DETAILS = {
    "paper_v1": {"optimizer.args.eps": 1.0, "schedule.args.gamma": 0.94},
    "paper_v2": {"schedule.args.gamma": 0.98, "train.ema_decay": 0.9999, "model.bn_momentum": None},
    "paper_v3_large": {"schedule.args.every_epochs": 3, "optimizer.args.eps": 0.002},
    "paper_v4_conv_small": {"optimizer.args.betas": [0.6, 0.999], "model.dropout": 0.3},
    "paper_v4_conv_medium": {
        "model.stochastic_depth": 0.075, "data.resolution": 256, "train.ema_decay": None,
        "data.auto_augment": "rand-m15-mmax15-n2-p0.7", "optimizer.args.eps": 1e-7,
    },
    "torchvision_v2_new": {
        "data.train_resolution": 176, "data.random_erase": 0.1, "data.mixup": 0.2,
        "data.cutmix": 1.0, "data.repeats": 4, "train.label_smoothing": 0.1, "train.ema_every": 32,
    },
    "torchvision_v3_large": {
        "optimizer.args.eps": 0.0316, "schedule.args.gamma": 0.973, "data.random_erase": 0.2,
        "data.auto_augment": "imagenet", "schedule.warmup_epochs": 0, "train.label_smoothing": 0,
    },
    "timm_v3_large": {
        "optimizer.args.eps": 0.001, "schedule.args.every_epochs": 2.4,
        "schedule.noise": [0.42, 0.9],
        "model.stochastic_depth": 0.2, "train.label_smoothing": 0.1, "data.erase_mode": "pixel",
    },
    "dli14_v2": {"schedule.warmup_epochs": 0, "model.dropout": 0, "train.label_smoothing": 0},
    "dli14_v2_long": {"schedule.warmup_from": 0.25, "model.dropout": 0.2},
    "marvis_v1_sgd": {"schedule.args.every_epochs": 30, "optimizer.args.momentum": 0.9},
}  # fmt: skip


@pytest.mark.parametrize("name", DETAILS)
def test_a_recipe_holds_its_details(compose_config, name):
    config = asdict(compose_config(f"experiment={name}"))
    for key, value in DETAILS[name].items():
        found = config
        for part in key.split("."):
            found = found[part]
        assert found == value, key


def test_smoke_keeps_the_recipe_s_parts(compose_config, tmp_path):
    """Mixing, erasing, repeated augmentation, the average and the lower side are all there."""
    config = compose_config("experiment=torchvision_v2_new", "run.smoke=true", "run.device=cpu")
    session = build_state(config)
    assert session.mixing is not None
    assert session.average is not None
    assert session.loaders.sampler.repeats == 4
    images, *_ = next(iter(session.loaders.train))
    assert images.shape[-1] == 32
    assert run_name(config) != run_name(compose_config("experiment=torchvision_v2_new"))
