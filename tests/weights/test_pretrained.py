"""Weights by the names that libraries publish them under."""

import pytest
import timm
import torch
import torchvision
from layout_nets import assert_same_logits, randomize
from safetensors.torch import save_file
from torch import nn

from mobilenet_exp import build_model, load_weights
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.weights.load import read_weights
from mobilenet_exp.weights.pretrained import TIMM, find_published, find_released


def _torchvision(name: str, **options) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, **options)


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
    assert plain.variant.describe() == "BN eps 1e-05"
    assert ours.variant.describe() == "BN eps 0.001, TensorFlow's SAME padding"


V3 = randomize(torchvision.models.mobilenet_v3_small())

STATE = V3.state_dict()


def test_names_bring_the_settings_they_were_published_with():
    found = find_published("torchvision:IMAGENET1K_V2", "v3_large")
    assert found.variant.bn_eps == 0.001
    assert found.preprocessing.resolution == 224
    assert round(found.preprocessing.resolution / found.preprocessing.crop_pct) == 232
    found = find_published("timm:mobilenetv4_conv_medium.e500_r256_in1k", "v4_conv_medium")
    assert found.preprocessing.describe().startswith("256 px, crop_pct 0.95, bicubic, mean [0.485")
    found = find_published("timm:mobilenetv1_100.ra4_e3600_r224_in1k", "v1")
    assert (found.variant.activation, found.preprocessing.mean) == ("relu6", [0.5, 0.5, 0.5])
    found = find_published("timm:tf_mobilenetv3_large_100.in1k", "v3_large")
    assert (found.variant.tf_same, found.variant.bn_eps) == (True, 0.001)


def test_released_files_are_known_by_their_content():
    """torchvision and timm put the first 8 hex digits of a file's SHA-256 in its name."""
    found = find_released("5c1a4163" + "0" * 56, "v3_large")
    assert found.name == "torchvision:IMAGENET1K_V2"
    assert find_released("427764d5" + "0" * 56, "v3_large").variant.tf_same
    assert find_released("0" * 64, "v3_large") is None


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("torchvision:V9", "v2", "not known for v2; allowed: IMAGENET1K_V1, IMAGENET1K_V2"),
        ("torchvision:IMAGENET1K_V1", "v1", "torchvision has v2, v3_large, v3_small; not model=v1"),
        (
            "timm:mobilenetv4_conv_blur_medium.e500_r224_in1k",
            "v4_conv_medium",
            "a network that is not built here",
        ),
        (
            "timm:mobilenetv5_300m.gemma3n",
            "v4_conv_large",
            "a network that is not built here",
        ),
        (
            "timm:mobilenetv3_small_050.lamb_in1k",
            "v3_small",
            "is for model=v3_small model.width_mult=0.5; not for v3_small at 1",
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


def test_like_is_refused_where_it_has_no_meaning(tmp_path, compose_config):
    torch.save(STATE, tmp_path / "w.pth")
    model, name = build_model("v3_small"), "timm:mobilenetv3_small_100.lamb_in1k"
    with pytest.raises(InputError, match=f"weights_like={name}: .*the layout of torchvision V3"):
        load_weights(model, tmp_path / "w.pth", like=name)
    with pytest.raises(InputError, match="is only for a file; a name brings its own settings"):
        load_weights(model, name, like=name)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    with pytest.raises(InputError, match="own.pth is a file of this repository"):
        load_weights(model, tmp_path / "own.pth", like=name)
    with pytest.raises(InputError, match="needs weights=FILE"):
        compose_config(f"weights_like={name}")

    other = timm.create_model("mobilenetv3_small_100").state_dict()
    torch.save(other, tmp_path / "timm.pth")
    with pytest.raises(
        InputError, match="weights_like=timm:mobilenetv2_100.ra_in1k: is for model=v2"
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
