"""Weights from every code give the logits they give there, and go back the same way."""

import argparse
import pickle
from collections import OrderedDict

import pytest
import timm
import torch
import torchvision
from layout_nets import DLi14V3, FlatV2, KuanWangV3, MarvisV1, assert_same_logits, randomize
from safetensors.torch import save_file
from torch import nn

from mobilenet_exp import build_model, load_weights, mobilenetv3
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.deploy import job as run
from mobilenet_exp.models.dialect import dialect_of
from mobilenet_exp.weights.loading import read_weights
from mobilenet_exp.weights.published import TIMM, find_published, find_released


def _torchvision(name: str, **options) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, **options)


# title: their module, our name, width, our options
SOURCES = {
    "torchvision v2": (lambda: _torchvision("mobilenet_v2"), "v2", 1.0, {}),
    "torchvision v2 0.5": (lambda: _torchvision("mobilenet_v2", width_mult=0.5), "v2", 0.5, {}),
    "torchvision v2 1.4": (lambda: _torchvision("mobilenet_v2", width_mult=1.4), "v2", 1.4, {}),
    "torchvision large": (lambda: _torchvision("mobilenet_v3_large"), "v3_large", 1.0, {}),
    "torchvision small": (lambda: _torchvision("mobilenet_v3_small"), "v3_small", 1.0, {}),
    **{
        f"torchvision {size} {width}": (
            lambda size=size, width=width: _torchvision(f"mobilenet_v3_{size}", width_mult=width),
            f"v3_{size}",
            width,
            {"width_rule": "torchvision"},
        )
        for size in ("large", "small")
        for width in (0.75, 0.61, 1.25)
    },
    **{
        f"timm {arch}": (lambda arch=arch: timm.create_model(arch), name, width, options)
        for arch, name, width, options in (
            ("mobilenetv1_100", "v1", 1.0, {}),
            ("mobilenetv1_125", "v1", 1.25, {}),
            ("mobilenetv2_035", "v2", 0.35, {}),
            ("mobilenetv2_075", "v2", 0.75, {}),
            ("mobilenetv2_100", "v2", 1.0, {}),
            ("mobilenetv2_140", "v2", 1.4, {}),
            ("mobilenetv3_large_100", "v3_large", 1.0, {}),
            ("mobilenetv3_large_075", "v3_large", 0.75, {}),
            ("mobilenetv3_small_100", "v3_small", 1.0, {}),
            ("mobilenetv3_small_075", "v3_small", 0.75, {}),
            ("mobilenetv3_small_050", "v3_small", 0.5, {"width_rule": "timm"}),
            ("mobilenet_edgetpu_100", "v3_edgetpu", 1.0, {}),
            ("mobilenetv4_conv_small", "v4_conv_small", 1.0, {}),
            ("mobilenetv4_conv_small_050", "v4_conv_small", 0.5, {}),
            ("mobilenetv4_conv_small_035", "v4_conv_small", 0.35, {}),
            ("mobilenetv4_conv_medium", "v4_conv_medium", 1.0, {}),
            ("mobilenetv4_conv_large", "v4_conv_large", 1.0, {}),
            ("mobilenetv4_hybrid_medium", "v4_hybrid_medium", 1.0, {}),
            ("mobilenetv4_hybrid_medium_075", "v4_hybrid_medium", 0.75, {}),
            ("mobilenetv4_hybrid_large", "v4_hybrid_large", 1.0, {}),
        )
    },
    "marvis": (MarvisV1, "v1", 1.0, {}),
    **{
        f"tonylins {width}": (
            lambda width=width: FlatV2(width, last_apart=False),
            "v2",
            width,
            {"width_rule": "tonylins"} if width != 1.0 else {},
        )
        for width in (1.0, 0.75, 1.4)
    },
    "tonylins, older": (lambda: FlatV2(last_apart=False, old_head=True), "v2", 1.0, {}),
    **{
        f"d-li14 v2 {width}": (
            lambda width=width: FlatV2(width, last_apart=True),
            "v2",
            width,
            {"width_rule": "divisor4"} if width == 0.1 else {},
        )
        for width in (1.0, 0.5, 0.1)
    },
    **{
        f"{title} {mode} {width}": (
            lambda net=net, mode=mode, width=width: net(mode, width),
            f"{prefix}v3_{mode}",
            width,
            {},
        )
        for title, net, prefix in (("d-li14 v3", DLi14V3, ""), ("kuan-wang", KuanWangV3, "seed_"))
        for mode in ("large", "small")
        for width in (1.0, 0.75, 1.25)
    },
}


@pytest.mark.parametrize("title", SOURCES)
def test_random_weights_give_the_logits_of_their_source(title, tmp_path):
    build, name, width, options = SOURCES[title]
    theirs = randomize(build())
    torch.save(theirs.state_dict(), tmp_path / "any.name")
    ours = load_weights(build_model(name, width_mult=width, **options), tmp_path / "any.name")
    assert not ours.training
    assert_same_logits(theirs, ours)


@pytest.mark.parametrize(
    ("arch", "name", "width"),
    [
        ("tf_mobilenetv3_large_100.in1k", "v3_large", 1.0),
        ("tf_mobilenetv3_large_075.in1k", "v3_large", 0.75),
        ("tf_mobilenetv3_small_minimal_100.in1k", "v3_small_minimalistic", 1.0),
    ],
)
def test_tensorflow_s_padding_comes_with_the_name(arch, name, width, tmp_path):
    """Keys cannot tell timm's tf_ nets from the others: `like` says what the file holds."""
    theirs = randomize(timm.create_model(arch))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = build_model(name, width_mult=width)
    load_weights(ours, tmp_path / "model.safetensors", like=f"timm:{arch}")
    for side in (64, 96, 97):
        assert_same_logits(theirs, ours, side)
    # without it: BN eps and padding of timm's other nets, so other logits
    plain = load_weights(build_model(name, width_mult=width), tmp_path / "model.safetensors")
    assert dialect_of(plain).words() == "BN eps 1e-05"
    assert dialect_of(ours).words() == "BN eps 0.001, TensorFlow's SAME padding"


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
    assert weights.notes[:2] == ("taken from state_dict", "prefix module. taken off")
    # its activation wins over what the net was built with
    ours = load_weights(build_model("v1", activation="relu6"), tmp_path / "model_best.pth.tar")
    assert isinstance(ours.stem.act, nn.ReLU)
    assert_same_logits(net, ours)


@pytest.mark.parametrize("mode", ["small", "large"])
def test_the_old_readme_s_call_works_as_it_stood(mode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = randomize(KuanWangV3(mode))
    torch.save(theirs.state_dict(), "mobilenetv3_small_67.4.pth.tar")
    # as in kuan-wang/pytorch-mobilenet-v3's README
    net_small = mobilenetv3(mode=mode)
    state_dict = torch.load("mobilenetv3_small_67.4.pth.tar")
    net_small.load_state_dict(state_dict)
    assert_same_logits(theirs, net_small.eval())
    # the caller's dict is as it was, and our own keys still load
    assert "features.0.0.weight" in state_dict
    net_small.load_state_dict(net_small.state_dict())
    del state_dict["classifier.1.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*classifier.bias"):
        net_small.load_state_dict(state_dict)


def test_mobilenetv3_builds_the_old_repository_s_net():
    assert sum(p.numel() for p in mobilenetv3().parameters()) == 2938368
    assert sum(p.numel() for p in mobilenetv3("large", 0.75).parameters()) == 3914944
    assert mobilenetv3(num_classes=7).classifier.out_features == 7
    with pytest.raises(InputError, match="mode=medium: allowed: large, small"):
        mobilenetv3(mode="medium")


def _without(*keys: str) -> dict:
    return {key: value for key, value in STATE.items() if key not in keys}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            _without("features.0.0.weight", "classifier.0.bias"),
            "tensors 2 missing (features.0.0.weight 16x3x3x3; classifier.0.bias 1024)",
        ),
        (STATE | {"features.99.weight": torch.ones(3)}, "1 not of this net (features.99.weight)"),
        (
            STATE
            | {"classifier.3.weight": torch.ones(10, 1024), "classifier.3.bias": torch.ones(10)},
            "(classifier.3.weight 10x1024, expected 1000x1024; classifier.3.bias 10, "
            "expected 1000); model.num_classes=10 fits",
        ),
        (torchvision.models.mobilenet_v3_large().state_dict(), "missing"),
        (torchvision.models.mobilenet_v2().state_dict(), "is of torchvision V2, which holds v2"),
        (
            KuanWangV3("small").state_dict(),
            "holds kuanwang_v3_large, kuanwang_v3_small; not model=v3",
        ),
        (torchvision.models.resnet18().state_dict(), "of no known layout, begins bn1.bias"),
        ({}, "holds no tensors; holds nothing"),
        ({"optimizer": {"lr": 1}}, "holds no tensors; holds optimizer"),
        ({0: torch.ones(3)}, "holds no tensors; holds 0"),
        (
            STATE | {"classifier.3.weight": torch.tensor(1.0)},
            "classifier.3.weight scalar, expected",
        ),
        (
            STATE | {"features.0.0.weight": torch.full((16, 3, 3, 3), float("nan"))},
            "1 with values that are no finite real numbers (features.0.0.weight)",
        ),
        (torch.ones(3), "holds a Tensor, no state dict"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_model_kept(content, message, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    model = build_model("v3_small")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(model, tmp_path / "w.pth")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"weights={tmp_path}")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert dialect_of(model).bn_eps == 0.001


class _Burglar:
    def __reduce__(self):
        return (__import__("os").system, ("touch burgled",))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(pickle.dumps({"a": _Burglar()}, 2)), "asks to run"),
        (lambda path: torch.save({"state_dict": _Burglar()}, path), "asks to run posix.system"),
        (lambda path: path.write_bytes(b"not weights at all"), "no weight file, or damaged"),
        (lambda path: path.write_bytes(b""), "no weight file, or damaged"),
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
        with pytest.raises(InputError, match="no weight file, or damaged"):
            load_weights(build_model("v3_small"), tmp_path / "w.pth")


def test_names_bring_the_settings_they_were_published_with():
    found = find_published("torchvision:IMAGENET1K_V2", "v3_large")
    assert found.dialect.bn_eps == 0.001
    assert found.preprocessing.resolution == 224
    assert round(found.preprocessing.resolution / found.preprocessing.crop_pct) == 232
    found = find_published("timm:mobilenetv4_conv_medium.e500_r256_in1k", "v4_conv_medium")
    assert found.preprocessing.words().startswith("256 px, crop_pct 0.95, bicubic, mean [0.485")
    found = find_published("timm:mobilenetv1_100.ra4_e3600_r224_in1k", "v1")
    assert (found.dialect.activation, found.preprocessing.mean) == ("relu6", [0.5, 0.5, 0.5])
    found = find_published("timm:tf_mobilenetv3_large_100.in1k", "v3_large")
    assert (found.dialect.tf_same, found.dialect.bn_eps) == (True, 0.001)


def test_released_files_are_known_by_their_content():
    """torchvision and timm put the first 8 hex digits of a file's SHA-256 in its name."""
    found = find_released("5c1a4163" + "0" * 56, "v3_large")
    assert found.name == "torchvision:IMAGENET1K_V2"
    assert find_released("427764d5" + "0" * 56, "v3_large").dialect.tf_same
    assert find_released("0" * 64, "v3_large") is None


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("torchvision:V9", "v2", "not known for v2; allowed: IMAGENET1K_V1, IMAGENET1K_V2"),
        ("torchvision:IMAGENET1K_V1", "v1", "torchvision has v2, v3_large, v3_small; not model=v1"),
        (
            "timm:mobilenetv4_conv_blur_medium.e500_r224_in1k",
            "v4_conv_medium",
            "is of a net that is not built here",
        ),
        ("timm:mobilenetv5_300m.gemma3n", "v4_conv_large", "is of a net that is not built here"),
        (
            "timm:mobilenetv3_small_050.lamb_in1k",
            "v3_small",
            "is of model=v3_small model.width_mult=0.5; not of v3_small at 1",
        ),
        ("timm:mobilenetv3_large_100", "v3_large", "near: mobilenetv3_large_100.miil_in21k"),
        ("timm:mobilenetv3_larg_100.ra_in1k", "v3_large", "near: mobilenetv3_large_100.ra_in1k"),
    ],
)
def test_an_unknown_name_says_what_is_near(name, model, message):
    with pytest.raises(InputError) as caught:
        load_weights(build_model(model), name)
    assert message in str(caught.value)


def test_a_fetch_without_network_is_one_line(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network\nand a long story")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(InputError, match=r"IMAGENET1K_V1: could not be fetched: no network$"):
        load_weights(build_model("v2"), "torchvision:IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("name", "model", "build"),
    [
        ("torchvision:IMAGENET1K_V1", "v2", lambda: _torchvision("mobilenet_v2")),
        ("timm:mobilenetv3_small_100.lamb_in1k", "v3_small", None),
    ],
)
def test_a_fetched_file_goes_the_library_s_way(name, model, build, monkeypatch):
    """All but the network: the library hands over what it would have downloaded."""
    theirs = randomize(build() if build else timm.create_model("mobilenetv3_small_100"))
    if build:
        monkeypatch.setattr(
            "torchvision.models._api.load_state_dict_from_url", lambda *_, **__: theirs.state_dict()
        )
    else:
        asked = {}

        def create(arch, pretrained):
            asked[arch] = pretrained
            return theirs

        monkeypatch.setattr("timm.create_model", create)
    weights = read_weights(name, build_model(model))
    assert weights.source == name
    ours = build_model(model)
    weights.into(ours)
    assert_same_logits(theirs, ours.eval())


def test_a_new_classifier_takes_the_place_of_another_number_of_classes(tmp_path):
    torch.save(STATE, tmp_path / "w.pth")
    model = build_model("v3_small", num_classes=7)
    head = model.classifier.weight.clone()
    left_out = read_weights(tmp_path / "w.pth", model).into(model, new_classifier=True)
    assert left_out == ["new classifier: 1000 classes replaced by 7"]
    assert torch.equal(model.classifier.weight, head)
    assert torch.equal(model.hidden.weight, STATE["classifier.0.weight"])
    same = build_model("v3_small")
    assert read_weights(tmp_path / "w.pth", same).into(same, new_classifier=True) == []


def test_like_is_refused_where_it_has_no_meaning(tmp_path, compose_config):
    torch.save(STATE, tmp_path / "w.pth")
    model, name = build_model("v3_small"), "timm:mobilenetv3_small_100.lamb_in1k"
    with pytest.raises(InputError, match=f"weights_like={name}: .*w.pth is of torchvision V3"):
        load_weights(model, tmp_path / "w.pth", like=name)
    with pytest.raises(InputError, match="is for a file; a name brings its own settings"):
        load_weights(model, name, like=name)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    with pytest.raises(InputError, match="own.pth is this repository's own"):
        load_weights(model, tmp_path / "own.pth", like=name)
    with pytest.raises(InputError, match="goes with weights=FILE"):
        compose_config(f"weights_like={name}")

    other = timm.create_model("mobilenetv3_small_100").state_dict()
    torch.save(other, tmp_path / "timm.pth")
    with pytest.raises(
        InputError, match="weights_like=timm:mobilenetv2_100.ra_in1k: is of model=v2"
    ):
        load_weights(model, tmp_path / "timm.pth", like="timm:mobilenetv2_100.ra_in1k")


def test_names_are_of_every_net_of_timm_that_is_built_here():
    """A net that is not in the list is of an architecture that has no rows here, or not built."""
    for arch in timm.list_pretrained("*mobilenet*"):
        base = arch.partition(".")[0]
        if base in TIMM:
            found = find_published(f"timm:{arch}", *TIMM[base])
            assert found.preprocessing.interpolation in ("bilinear", "bicubic")
    missing = {arch.partition(".")[0] for arch in timm.list_pretrained("*mobilenet*")} - set(TIMM)
    assert missing == {
        "mobilenet_edgetpu_v2_m", "mobilenetv1_100h", "mobilenetv2_110d", "mobilenetv2_120d",
        "mobilenetv3_large_150d", "mobilenetv3_rw", "mobilenetv4_conv_aa_large",
        "mobilenetv4_conv_blur_medium", "mobilenetv5_300m",
    }  # fmt: skip


def test_own_weights_of_other_options_are_refused(tmp_path, quick):
    """h-swish leaves no trace in shapes: the checkpoint's own word counts."""
    config = quick("+model.args.hswish=none", "data=fake", "data.resolution=32", "train.epochs=1")
    results = run.train(config)
    best = tmp_path / "runs" / results["name"] / "checkpoints" / "best.pt"
    options = {"width_mult": 0.35, "num_classes": 10}
    with pytest.raises(InputError, match="was trained with {'hswish': 'none'}"):
        load_weights(build_model("v3_small", **options), best)
    assert load_weights(build_model("v3_small", **options, hswish="none"), best)
