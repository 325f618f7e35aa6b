"""Weights from every code give the logits they give there."""

import pytest
import timm
import torch
import torchvision
from layout_nets import DLi14V3, FlatV2, KuanWangV3, MarvisV1, assert_same_logits, randomize
from torch import nn

from mobilenet_exp import build_model, load_weights, train
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.weights.checkpoint import load_checkpoint
from mobilenet_exp.weights.load import read_weights


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
        for title, net, prefix in (
            ("d-li14 v3", DLi14V3, ""),
            ("kuan-wang", KuanWangV3, "kuanwang_"),
        )
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


V3 = randomize(torchvision.models.mobilenet_v3_small())

STATE = V3.state_dict()


def _without(*keys: str) -> dict:
    return {key: value for key, value in STATE.items() if key not in keys}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            _without("features.0.0.weight", "classifier.0.bias"),
            "tensors 2 missing (features.0.0.weight 16x3x3x3; classifier.0.bias 1024)",
        ),
        (
            STATE | {"features.99.weight": torch.ones(3)},
            "1 not in this network (features",
        ),
        (
            STATE
            | {"classifier.3.weight": torch.ones(10, 1024), "classifier.3.bias": torch.ones(10)},
            "(classifier.3.weight 10x1024, expected 1000x1024; classifier.3.bias 10, "
            "expected 1000); model.num_classes=10 fits",
        ),
        (torchvision.models.mobilenet_v3_large().state_dict(), "missing"),
        (
            torchvision.models.mobilenet_v2().state_dict(),
            "torchvision V2, for v2; not for model=v3",
        ),
        (
            KuanWangV3("small").state_dict(),
            "for kuanwang_v3_large, kuanwang_v3_small; not for model=v3",
        ),
        (
            torchvision.models.resnet18().state_dict(),
            "its first keys: bn1.bias",
        ),
        ({}, "holds no tensors; its keys: none"),
        ({"optimizer": {"lr": 1}}, "holds no tensors; its keys: optimizer"),
        ({0: torch.ones(3)}, "holds no tensors; its keys: 0"),
        (
            STATE | {"classifier.3.weight": torch.tensor(1.0)},
            "classifier.3.weight scalar, expected",
        ),
        (
            STATE | {"features.0.0.weight": torch.full((16, 3, 3, 3), float("nan"))},
            "1 with values that are not finite real numbers (features.0.0.weight)",
        ),
        (torch.ones(3), "holds a Tensor, not a state dict"),
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
    assert model.variant.bn_eps == 0.001


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


def test_own_weights_of_other_options_are_refused(tmp_path, quick):
    """h-swish leaves no trace in shapes: the checkpoint's own word counts."""
    config = quick("+model.args.hswish=none", "data=fake", "data.resolution=32", "train.epochs=1")
    results = train(config)
    best = tmp_path / "runs" / results["name"] / "checkpoints" / "best.pt"
    options = {"width_mult": 0.35, "num_classes": 10}
    with pytest.raises(InputError, match="was trained with {'hswish': 'none'}"):
        load_weights(build_model("v3_small", **options), best)
    assert load_weights(build_model("v3_small", **options, hswish="none"), best)


def test_weights_of_another_stem_are_refused(finished):
    config, _, folder = finished
    narrow = {"width_mult": config.model.width_mult, "num_classes": 10}
    net = build_model("v3_small", **narrow, stem_stride=1)
    with pytest.raises(InputError, match=r"model.stem_stride=1: .*best.pt was trained with 2"):
        load_weights(net, folder / "checkpoints" / "best.pt")
    net = build_model("v3_small", **narrow)
    loaded = load_weights(net, folder / "checkpoints" / "best.pt")
    state = load_checkpoint(folder / "checkpoints" / "best.pt")["model"]
    assert torch.equal(loaded.classifier.weight, state["classifier.weight"])
