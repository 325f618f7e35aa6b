"""Our weights in another code's layout load strictly there and give the same logits."""

import pytest
import timm
import torchvision
from layout_nets import FlatV2, KuanWangV3, MarvisV1, assert_same_logits, randomize
from torch import nn

from mobilenet_exp import build_model, export_weights
from mobilenet_exp.core.errors import InputError


def _torchvision(name: str) -> nn.Module:
    return torchvision.models.get_model(name, weights=None)


EXPORTS = {
    "torchvision v2": ("torchvision", "v2", 1.0, {}, lambda: _torchvision("mobilenet_v2")),
    "torchvision large": (
        "torchvision", "v3_large", 1.0, {}, lambda: _torchvision("mobilenet_v3_large"),
    ),
    "torchvision small": (
        "torchvision", "v3_small", 1.0, {}, lambda: _torchvision("mobilenet_v3_small"),
    ),
    **{
        f"timm {arch}": ("timm", name, width, options, lambda arch=arch: timm.create_model(arch))
        for arch, name, width, options in (
            ("mobilenetv1_100", "v1", 1.0, {"activation": "relu6"}),
            ("mobilenetv2_100", "v2", 1.0, {}),
            ("mobilenetv2_035", "v2", 0.35, {}),
            ("mobilenetv2_140", "v2", 1.4, {}),
            ("mobilenetv3_large_100", "v3_large", 1.0, {}),
            ("mobilenetv3_large_075", "v3_large", 0.75, {}),
            ("mobilenetv3_small_100", "v3_small", 1.0, {}),
            ("mobilenetv3_small_050", "v3_small", 0.5, {"width_rule": "timm"}),
            ("mobilenet_edgetpu_100", "v3_edgetpu", 1.0, {}),
            ("mobilenetv4_conv_small_050", "v4_conv_small", 0.5, {}),
            ("mobilenetv4_conv_medium", "v4_conv_medium", 1.0, {}),
            ("mobilenetv4_hybrid_medium", "v4_hybrid_medium", 1.0, {}),
        )
    },
    "kuan_wang": ("kuan_wang", "kuanwang_v3_small", 0.75, {}, lambda: KuanWangV3("small", 0.75)),
    "marvis": ("marvis", "v1", 1.0, {}, MarvisV1),
    "tonylins": ("tonylins", "v2", 1.0, {}, lambda: FlatV2(last_apart=False)),
    "d_li14_v2": ("d_li14_v2", "v2", 0.5, {}, lambda: FlatV2(0.5, last_apart=True)),
}  # fmt: skip


@pytest.mark.parametrize("title", EXPORTS)
def test_exported_weights_load_strictly_there_and_give_the_same_logits(title):
    layout, name, width, options, build = EXPORTS[title]
    # the paper's BN eps, which is not the target's everywhere
    ours = randomize(build_model(name, width_mult=width, **options))
    theirs = build().eval()
    theirs.load_state_dict(export_weights(ours, layout), strict=True)
    # variances that take up another eps are rounded to float32
    assert_same_logits(theirs, ours, exact_to=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "layout", "message"),
    [
        ("v1", {}, "timm", "layout=timm: timm runs relu6, this net relu"),
        ("v3_large", {"width_mult": 0.75}, "torchvision", "other channels at width 0.75"),
        ("v3_small", {"width_mult": 0.5}, "timm", "other channels at width 0.5"),
        ("v3_small", {"head_width": 1280}, "timm", "the published head"),
        ("v3_small", {"stem_stride": 1}, "timm", "halves the image in the stem"),
        ("v1", {}, "torchvision", "torchvision V3 has v3_large, v3_small; not v1"),
        ("v2", {}, "onnx", "not known; allowed: torchvision, ours, timm"),
        ("v3_small", {}, "d_li14_v3", "squeeze-excite before act if expanded"),
    ],
)
def test_what_the_target_has_not_is_not_exported(name, options, layout, message):
    with pytest.raises(InputError, match=message):
        export_weights(build_model(name, **options), layout)
