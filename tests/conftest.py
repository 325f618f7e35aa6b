"""Shared by all tests: composing as train.py does, and W&B kept inside the test's folder."""

import functools
import gc
import importlib
import logging
import os
import sys
from pathlib import Path

import image_folders
import pytest
import torch
from layout_nets import KuanWangV3, randomize

from mobilenet_exp import compose, train
from mobilenet_exp.config.identity import run_name
from mobilenet_exp.config.schema import Config
from mobilenet_exp.models import MODELS


@pytest.fixture(autouse=True, scope="session")
def _private_wandb(tmp_path_factory):
    """No key, no network, no files in the home folder; child processes inherit it."""
    folder = tmp_path_factory.mktemp("wandb")
    for name in ("DATA", "CACHE", "CONFIG"):
        os.environ[f"WANDB_{name}_DIR"] = str(folder)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        os.environ.pop(name, None)
    os.environ["NETRC"] = str(folder / "netrc")


@pytest.fixture(autouse=True, scope="session")
def _silent_locks():
    """Keep names of locks out of reports: xdist cannot send a name that is no text."""
    logging.getLogger("filelock").setLevel(logging.WARNING)


@pytest.fixture(autouse=True, scope="session")
def _libraries_are_kept():
    """Leave what was imported out of collections, which tests ask for and forked workers repeat."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def tiny():
    """A net of milliseconds under `model.name=tiny`, for this test alone."""
    importlib.import_module("tiny_net")
    yield
    del sys.modules["tiny_net"]
    del MODELS._builders["tiny"]


@pytest.fixture(scope="session")
def compose_config():
    """Compose as the command line does: `compose_config("model=v2", ...) -> Config`."""
    return compose


@pytest.fixture(scope="session")
def quick_in(compose_config):
    """A run of seconds, `quick_in(folder, ...) -> Config`: a narrow net, W&B disabled."""

    def composed(folder: Path, *overrides: str) -> Config:
        return compose_config(
            "model.width_mult=0.35",
            "model.stem_stride=2",
            "train.epochs=2",
            "run.device=cpu",
            "run.wandb=disabled",
            "run.pictures=false",
            f"run.root={folder}/runs",
            *overrides,
        )

    return composed


@pytest.fixture
def quick(quick_in, tmp_path):
    """The same with its folder in tmp_path: `quick(...) -> Config`."""
    return functools.partial(quick_in, tmp_path)


@pytest.fixture(scope="session")
def finished(quick_in, tmp_path_factory):
    """A finished run, to look at only: its config, its results, its folder."""
    config = quick_in(tmp_path_factory.mktemp("finished"))
    return config, train(config), Path(config.run.root) / run_name(config)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A folder of photographs, odd and damaged ones among them."""
    folder = tmp_path_factory.mktemp("photos")
    image_folders.write_photos(folder)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small tree of class folders, to be changed at will."""
    image_folders.write_class_folders(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def flat(tmp_path_factory) -> Path:
    """ImageNet's validation set as a few files in one flat folder, with a list of labels."""
    root = tmp_path_factory.mktemp("imagenet")
    image_folders.write_flat_set(root)
    return root


@pytest.fixture(scope="session")
def kuan_wang_weights(tmp_path_factory) -> Path:
    """A checkpoint of kuan-wang's layout, of random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mobilenetv3_small_67.4.pth.tar"
    torch.save(randomize(KuanWangV3("small")).state_dict(), path)
    return path
