"""Weight files as people save them; what is none is refused and runs nothing."""

import argparse
import pickle
from collections import OrderedDict, defaultdict
from datetime import datetime
from pathlib import PosixPath

import numpy as np
import pytest
import torch
import torchvision
from layout_nets import DLi14V3, MarvisV1, assert_same_logits, randomize
from torch import nn

from mobilenet_exp import build_model, load_weights
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.weights.load import read_weights

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
        # under any single name, or in each other
        {"model_state_dict": STATE, "epoch": 1},
        {"net": STATE, "acc": 91.5},
        {
            "model": {"state_dict": STATE, "name": "v3"},
            "optimizer": {"state": {0: {"a": torch.ones(2)}}},
        },
        # Lightning's module, alone and beside a loss with weights
        {"state_dict": _prefixed("model."), "pytorch-lightning_version": "2.4"},
        {"state_dict": {**_prefixed("net.backbone."), "loss.weight": torch.ones(3)}},
        # DataParallel around a part
        {key.replace("features.", "features.module."): value for key, value in STATE.items()},
        # a profiler's counters
        {**STATE, "features.0.total_ops": torch.zeros(1), "total_params": torch.zeros(1)},
        # plain values beside the tensors
        {
            "state_dict": STATE,
            "best": np.float64(91.5),
            "curve": np.arange(3.0),
            "names": np.array(["a"]),
            "path": PosixPath("/data"),
            "counts": defaultdict(list, {"a": [1]}),
            "when": datetime(2026, 1, 2),
        },
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


def _python2(content: bytes) -> bytes:
    """Return a pickle of protocol 2 as Python 2 wrote it: text is SHORT_BINSTRING."""
    return content.replace(b"X\x05\x00\x00\x00ascii", b"U\x05asc\xe9i")


def test_python_2_s_strings_load(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"state_dict": STATE, "note": "ascii"}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert _python2(content) != content
    path.write_bytes(_python2(content))
    load_weights(build_model("v3_small"), path)


class AttributeDict(dict):
    """Lightning's is one, too."""


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("lightning_fabric.utilities.data", "AttributeDict"),
        ("pathlib._local", "PosixPath"),
        ("pathlib", "WindowsPath"),
        ("numpy.core.multiarray", "scalar"),
    ],
)
def test_values_of_codes_that_are_not_here_load(module, kind, tmp_path):
    """As their pickles name them, on another system or version."""
    path = tmp_path / "w.pth"
    value, name = {
        "PosixPath": (PosixPath("a/b"), "pathlib\nPosixPath"),
        "WindowsPath": (PosixPath("a/b"), "pathlib\nPosixPath"),
        "scalar": (np.float64(3), "numpy._core.multiarray\nscalar"),
        "AttributeDict": (AttributeDict(lr=0.1), f"{__name__}\nAttributeDict"),
    }[kind]
    torch.save({"state_dict": STATE, "value": value}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert name.encode() in content
    path.write_bytes(content.replace(name.encode(), f"{module}\n{kind}".encode()))
    load_weights(build_model("v3_small"), path)


def test_of_several_candidates_the_choice_is_said_and_can_be_made(tmp_path):
    path = tmp_path / "w.pth"
    other = {key: value + 1 for key, value in STATE.items()}

    def first(**options):
        weights = read_weights(path, build_model("v3_small"), **options)
        return weights.tensors["stem.conv.weight"][0, 0, 0, 0], weights.notes[0]

    torch.save({"state_dict": STATE, "state_dict_ema": other}, path)
    weight = STATE["features.0.0.weight"][0, 0, 0, 0]
    words = "taken from state_dict_ema, not state_dict (weights_key=NAME chooses)"
    assert first() == (weight + 1, words)
    assert first(key="state_dict") == (weight, "taken from state_dict")
    with pytest.raises(InputError, match=r"weights_key=x: .* it has state_dict_ema, state_dict$"):
        first(key="x")
    torch.save({"gen": {"net": STATE}, "dis": {"net": other}}, path)
    with pytest.raises(InputError, match="holds gen.net and dis.net; choose one, as weights_key=g"):
        first()
    assert first(key="dis.net")[0] == weight + 1
    torch.save({"state_dict": {**_prefixed("student."), **_prefixed("teacher.")}}, path)
    with pytest.raises(InputError, match="holds state_dict.student and state_dict.teacher; choose"):
        first()
    assert first(key="state_dict.teacher")[0] == weight
    with pytest.raises(InputError, match="weights_key=x: .* has no network of a known layout"):
        first(key="state_dict.x")


def test_scripts_and_whole_networks_say_what_to_do(tmp_path):
    path = tmp_path / "w.pt"
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(path))
    with pytest.raises(InputError, match=r"is a TorchScript archive; .*torch.jit.load\(FILE\)"):
        load_weights(build_model("v3_small"), path)
    torch.save(V3, path)
    with pytest.raises(InputError, match=r"would run torchvision\S*; .*net.state_dict\(\), NEW"):
        load_weights(build_model("v3_small"), path)


def test_what_is_unknown_shows_its_first_keys(tmp_path):
    torch.save({"a.weight": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="unknown checkpoint layout; its first keys: a.weight, b;"):
        load_weights(build_model("v3_small"), tmp_path / "w.pth")
    torch.save({"epoch": 3, "args": {"lr": 0.1}}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="holds no tensors; its keys: epoch, args"):
        load_weights(build_model("v3_small"), tmp_path / "w.pth")


@pytest.mark.parametrize(("hidden", "classifier"), [("1", "5"), ("0", "2")])
def test_earlier_files_of_d_li14_load(hidden, classifier, tmp_path):
    net = randomize(DLi14V3("small"))
    state = {
        key.replace("classifier.0", f"classifier.{hidden}").replace(
            "classifier.3", f"classifier.{classifier}"
        ): value
        for key, value in net.state_dict().items()
    }
    torch.save(state, tmp_path / "w.pth")
    assert_same_logits(net, load_weights(build_model("v3_small"), tmp_path / "w.pth"))


def _filters(kind) -> dict:
    return {key: kind(value) if value.ndim == 4 else value for key, value in STATE.items()}


def _quantised(value: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(value, 0.01, 0, torch.qint8)


@pytest.mark.parametrize("kind", [lambda value: (value * 100).to(torch.int8), _quantised])
def test_integers_without_their_scale_are_refused(kind, tmp_path):
    torch.save(_filters(kind), tmp_path / "w.pth")
    words = r"tensors \d+ of a quantised network, integers without their scale; save the float"
    with pytest.raises(InputError, match=words):
        load_weights(build_model("v3_small"), tmp_path / "w.pth")


def test_float8_and_counters_in_half_precision_load(tmp_path):
    """A counter past 65504 is infinite in float16, and counts for nothing."""
    state = _filters(lambda value: value.to(torch.float8_e4m3fn))
    infinite = torch.tensor(float("inf"), dtype=torch.float16)
    state |= {key: infinite for key in state if "num_batches_tracked" in key}
    torch.save(state, tmp_path / "w.pth")
    model = load_weights(build_model("v3_small"), tmp_path / "w.pth")
    assert torch.equal(model.stem.conv.weight, state["features.0.0.weight"].float())
    assert model.stem.bn.num_batches_tracked == 0
