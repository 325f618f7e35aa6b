"""Weight files as people save them; what is none is refused and runs nothing."""

import argparse
import pickle
from collections import OrderedDict

import pytest
import torch
import torchvision
from layout_nets import MarvisV1, assert_same_logits, randomize
from torch import nn

from mobilenet_exp import build_model, load_weights
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.weights.loading import read_weights

V3 = randomize(torchvision.models.mobilenet_v3_small())

STATE = V3.state_dict()


def _prefixed(prefix: str) -> dict:
    return {f"{prefix}{key}": value for key, value in STATE.items()}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3, "arch": "mobilenet", "best_prec1": torch.tensor(1.0)},
        {"model": STATE, "args": argparse.Namespace(lr=0.1), "model_ema": None},
        {"model": _prefixed("module."), "optimizer": {"state": {}}},
        _prefixed("_orig_mod."),
        _prefixed("module._orig_mod."),
        {"state_dict": _prefixed("_orig_mod.module.")},
        # torch's AveragedModel; the plain weights beside it are others
        {
            "model": {key: value * 0 for key, value in STATE.items()},
            "model_ema": {"n_averaged": torch.tensor(9), **_prefixed("module.")},
        },
        {"state_dict": {key: value * 0 for key, value in STATE.items()}, "state_dict_ema": STATE},
        # written before PyTorch counted batches
        {key: value for key, value in STATE.items() if "num_batches_tracked" not in key},
        OrderedDict((key, value.half()) for key, value in STATE.items()),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_wrappers_and_prefixes_come_off(content, legacy, tmp_path):
    torch.save(content, tmp_path / "w.pth.tar", _use_new_zipfile_serialization=not legacy)
    ours = load_weights(build_model("v3_small"), tmp_path / "w.pth.tar")
    weight = STATE["features.4.block.2.fc1.weight"]
    half = isinstance(content, OrderedDict) and content is not STATE
    assert torch.equal(
        ours.blocks[3].se.reduce.weight, weight.half().float() if half else weight
    ) or torch.equal(ours.blocks[3].se.reduce.weight, weight)


def test_the_old_v1_repository_s_file_loads_as_it_was_written(tmp_path):
    net = randomize(MarvisV1())
    state = {
        f"module.{key}": value
        for key, value in net.state_dict().items()
        if "num_batches_tracked" not in key
    }
    wrapper = {"epoch": 90, "arch": "mobilenet", "state_dict": state, "best_prec1": 68.848}
    torch.save(wrapper, tmp_path / "model_best.pth.tar")
    weights = read_weights(tmp_path / "model_best.pth.tar", build_model("v1"))
    assert weights.layout.title == "marvis V1"
    assert weights.notes[:2] == ("taken from state_dict", "prefix module. removed")
    # its activation wins over what the net was built with
    ours = load_weights(build_model("v1", activation="relu6"), tmp_path / "model_best.pth.tar")
    assert isinstance(ours.stem.act, nn.ReLU)
    assert_same_logits(net, ours)


class _Burglar:
    def __reduce__(self):
        return (__import__("os").system, ("touch burgled",))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(pickle.dumps({"a": _Burglar()}, 2)), "would run"),
        (lambda path: torch.save({"state_dict": _Burglar()}, path), "would run posix.system"),
        (lambda path: path.write_bytes(b"not weights at all"), "not a weight file, or damaged"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_bytes(b"\xff" * 8 + b"{broken"), "a damaged safetensors file"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_no_weights_is_refused_and_runs_nothing(
    write, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pth"
    write(path)
    with pytest.raises(InputError, match=message):
        load_weights(build_model("v1"), path)
    assert not (tmp_path / "burgled").exists()


def test_a_cut_file_is_refused(tmp_path):
    torch.save(STATE, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    for size in (len(content) // 2, len(content) - 100):
        (tmp_path / "w.pth").write_bytes(content[:size])
        with pytest.raises(InputError, match="not a weight file, or damaged"):
            load_weights(build_model("v3_small"), tmp_path / "w.pth")
