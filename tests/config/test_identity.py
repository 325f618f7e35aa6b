"""A run is named by what it learns, and by nothing else."""

import re
import shutil
from dataclasses import asdict

import torch

from mobilenet_exp.config.convert import to_config
from mobilenet_exp.config.identity import run_name


def test_run_name_follows_what_is_learned(compose_config):
    name = run_name(compose_config())
    assert re.fullmatch(r"v3_small-w1-r32-digits-sgd-s0-[0-9a-f]{8}", name)
    assert run_name(compose_config("model.width_mult=1")) == name
    for place in ("run.device=cpu", "run.workers=3", "run.root=there"):
        assert run_name(compose_config(place)) == name
    for change in ("train.seed=1", "optimizer.lr=0.1", "schedule=step", "data.batch_size=32"):
        assert run_name(compose_config(change)) != name


def test_folders_of_images_are_told_apart_by_their_own_name(compose_config):
    def name(root):
        return run_name(compose_config("data=imagefolder", f"data.root={root}"))

    assert name("/disk/flowers") == name("/mnt/flowers/") != name("/disk/birds")


def test_bits_of_weights_name_a_run_that_learns_them(compose_config):
    plain = run_name(compose_config())
    learned = run_name(compose_config("train.quantise=int8"))
    # before there was a choice, 8 bits had no word of their own
    before = asdict(compose_config("train.quantise=int8", "train.int8_weights=8"))
    del before["train"]["int8_weights"]
    old = to_config(before)
    assert old.train.int8_weights == 8
    assert len({plain, learned, run_name(old)}) == 3
    assert run_name(old) == "v3_small-w1-r32-digits-sgd-s0-fa2552f6"


def test_a_saved_config_comes_back_the_same(compose_config):
    config = compose_config("model=v1", "optimizer=adamw")
    assert to_config(asdict(config)) == config


def _save(net, path):
    torch.save(net.state_dict(), path)
    return path


def test_weights_are_part_of_what_is_learned_by_their_content(quick, tmp_path):
    first = _save(torch.nn.Linear(1, 1), tmp_path / "a.pth")
    second = _save(torch.nn.Linear(1, 1), tmp_path / "b.pth")
    moved = shutil.copy(first, tmp_path / "c.pth")
    names = [run_name(quick(f"weights={path}")) for path in (first, second, moved)]
    assert names[0] == names[2] != names[1]
    assert run_name(quick()) not in names
    assert run_name(quick("weights=torchvision:IMAGENET1K_V1")) not in names


def test_devices_are_a_place_and_parts_are_learned(compose_config):
    assert run_name(compose_config("run.devices=2")) == run_name(compose_config())
    assert run_name(compose_config("train.accumulate=2")) != run_name(compose_config())
