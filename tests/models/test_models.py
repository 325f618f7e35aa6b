"""Every network is its paper's table: exact counts, and logits equal to the libraries'."""

import pytest
import timm
import torch
import torchvision
from layout_nets import randomize
from torch import nn

from docs.build import zoo
from mobilenet_exp import build_model, list_models, profile_model
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.papers.rows import NOT_BUILT, paper_rows

NAMES = [
    "v1", "v1_full_conv", "v1_shallow", "v2", "v3_large", "v3_small", "v3_large_minimalistic",
    "v3_small_minimalistic", "v3_edgetpu", "kuanwang_v3_large", "kuanwang_v3_small",
    "v4_conv_small", "v4_conv_medium", "v4_conv_large", "v4_hybrid_medium", "v4_hybrid_large",
]  # fmt: skip

RELU6 = {"activation": "relu6"}

# peer, name, width, options: nets built by other people's code from the same tables
PEERS = [
    ("torchvision:mobilenet_v2", "v2", 1.0, {}),
    ("torchvision:mobilenet_v3_large", "v3_large", 1.0, {}),
    ("torchvision:mobilenet_v3_small", "v3_small", 1.0, {}),
    ("timm:mobilenetv1_100", "v1", 1.0, RELU6),
    ("timm:mobilenetv1_125", "v1", 1.25, RELU6),
    ("timm:mobilenetv2_100", "v2", 1.0, {}),
    ("timm:mobilenetv2_140", "v2", 1.4, {}),
    ("timm:mobilenetv2_075", "v2", 0.75, {}),
    ("timm:mobilenetv2_050", "v2", 0.5, {}),
    ("timm:mobilenetv2_035", "v2", 0.35, {}),
    ("timm:mobilenetv3_large_100", "v3_large", 1.0, {}),
    ("timm:mobilenetv3_large_075", "v3_large", 0.75, {}),
    ("timm:mobilenetv3_small_100", "v3_small", 1.0, {}),
    ("timm:mobilenetv3_small_075", "v3_small", 0.75, {}),
    ("timm:mobilenetv3_small_050", "v3_small", 0.5, {"width_rule": "timm"}),
    ("timm:tf_mobilenetv3_large_minimal_100", "v3_large_minimalistic", 1.0, {}),
    ("timm:tf_mobilenetv3_small_minimal_100", "v3_small_minimalistic", 1.0, {}),
    ("timm:mobilenet_edgetpu_100", "v3_edgetpu", 1.0, {}),
    ("timm:mobilenetv4_conv_small", "v4_conv_small", 1.0, {}),
    ("timm:mobilenetv4_conv_small_050", "v4_conv_small", 0.5, {}),
    ("timm:mobilenetv4_conv_medium", "v4_conv_medium", 1.0, {}),
    ("timm:mobilenetv4_conv_large", "v4_conv_large", 1.0, {}),
]


def _peer(name: str) -> nn.Module:
    library, _, name = name.partition(":")
    if library == "timm":
        return timm.create_model(name)
    return torchvision.models.get_model(name, weights=None)


def _on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, **options)


def test_list_models_names_every_net():
    """Generation by generation; a net that is added takes its place among them."""
    assert [name for name in list_models() if name in NAMES] == NAMES


@pytest.mark.parametrize(
    "row",
    [row for row in paper_rows() if row.model not in NOT_BUILT],
    ids=lambda row: f"{row.model}-{row.width_mult}-{row.resolution}-{row.source}",
)
def test_counts_equal_the_row_to_the_last_unit(row):
    # the zoo counts once what several sources publish
    assert zoo.count(row) == (row.madds, row.params)
    assert zoo.count(row, row.convention).madds == row.madds_as_printed


@pytest.mark.parametrize(("peer", "name", "width", "options"), PEERS)
def test_counts_and_logits_equal_the_peer(peer, name, width, options):
    theirs = _peer(peer).eval()
    eps = next(m.eps for m in theirs.modules() if isinstance(m, nn.BatchNorm2d))
    ours = build_model(name, width_mult=width, bn_eps=eps, **options).eval()
    randomize(theirs)
    _copy_by_order(theirs, ours)
    # at 65 px TensorFlow's SAME padding, which timm's tf_ nets emulate, is symmetric
    images = torch.randn(2, 3, 65, 65)
    assert _count_by_hooks(theirs, 65) == profile_model(ours, 65).madds
    with torch.no_grad():
        expected, logits = theirs(images), ours(images)
        exactly, exact = theirs.double()(images.double()), ours.double()(images.double())
    # 1e-5 in float32, of logits scaled to 1; in float64 nothing but rounding is left
    scale = expected.std()
    torch.testing.assert_close(logits / scale, expected / scale, rtol=0, atol=1e-5)
    torch.testing.assert_close(exact, exactly, rtol=1e-10, atol=1e-10)


def _copy_by_order(source: nn.Module, target: nn.Module) -> None:
    """Both list their tensors in forward order; a 1x1 convolution may stand for a linear."""
    theirs, ours = source.state_dict(), target.state_dict()
    assert len(theirs) == len(ours)
    for (_, value), (key, old) in zip(theirs.items(), ours.items(), strict=True):
        assert value.numel() == old.numel(), key
        ours[key] = value.reshape(old.shape)
    target.load_state_dict(ours)


def _count_by_hooks(net: nn.Module, resolution: int) -> int:
    """The papers' convention by formula, from module shapes: a second, independent counter."""
    total = 0

    def count(module, _, output):
        nonlocal total
        if isinstance(module, nn.Conv2d):
            per_output = module.in_channels // module.groups
            total += output.numel() * per_output * module.kernel_size[0] * module.kernel_size[1]
        else:
            total += module.in_features * module.out_features

    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        net(torch.zeros(1, 3, resolution, resolution))
    for hook in hooks:
        hook.remove()
    return total


# of the heavy V4 one width each: they share their rules with Conv-Small
@pytest.mark.parametrize(
    ("name", "width"),
    [
        (name, width)
        for name in NAMES
        for width in ((0.35,) if name in NAMES[-4:] else (0.1, 0.35, 0.61, 1.37))
    ],
)
def test_any_width_trains_at_32_px(name, width):
    net = build_model(name, width_mult=width, num_classes=7)
    logits = net(torch.randn(3, 3, 32, 32))
    assert logits.shape == (3, 7)
    logits.logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [32, 33, 97])
def test_any_side_from_32_px_evaluates_the_same_twice(name, side):
    net = build_model(name, width_mult=0.25, num_classes=5).eval()
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        assert torch.equal(net(images), net(images))


@pytest.mark.parametrize("name", NAMES)
def test_stem_stride_1_keeps_the_grid_of_small_images(name):
    counts = [profile_model(_on_meta(name, stem_stride=stride), 32) for stride in (1, 2)]
    assert counts[0].params == counts[1].params
    # the same grid as an image of twice the side
    doubled = profile_model(_on_meta(name, stem_stride=2), 64)
    assert counts[0].madds == doubled.madds


@pytest.mark.parametrize(
    ("name", "width", "stem", "last", "features"),
    [
        # V1 cuts to an integer; V2's and V3's last layers do not shrink, V3's 960 does
        ("v1", 0.35, 11, None, 358),
        ("v2", 0.35, 16, 1280, 1280),
        ("v2", 1.4, 48, 1792, 1792),
        ("v3_large", 0.35, 8, 336, 1280),
        ("v3_large", 1.25, 24, 1200, 1600),
        ("v3_small", 0.5, 8, 288, 1024),
    ],
)
def test_width_rule_at_the_ends_of_the_net(name, width, stem, last, features):
    net = _on_meta(name, width_mult=width)
    assert net.stem.conv.out_channels == stem
    assert net.classifier.in_features == features
    if last:
        assert net.last_conv.conv.out_channels == last


def test_expansion_follows_the_rounded_input():
    """Slim's rule and not torchvision's: V3-Large 0.75, third block, 72/24 of 24 channels."""
    block = _on_meta("v3_large", width_mult=0.75).blocks[2]
    assert (block.expand.conv.in_channels, block.expand.conv.out_channels) == (24, 72)


@pytest.mark.parametrize(
    ("name", "dropout", "eps", "momentum"),
    [
        ("v1", 0.001, 0.001, 0.0003),
        ("v2", 0.2, 0.001, 0.003),
        ("v3_large", 0.2, 0.001, 0.01),
    ],
)
def test_paper_values_are_the_defaults_and_yield_to_options(name, dropout, eps, momentum):
    net = _on_meta(name)
    assert (net.dropout.p, net.stem.bn.eps, net.stem.bn.momentum) == (dropout, eps, momentum)
    net = _on_meta(name, dropout=0.5, bn_eps=0.1, bn_momentum=0.2)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert net.dropout.p == 0.5
    assert {(m.eps, m.momentum) for m in norms} == {(0.1, 0.2)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "v9"}, "model.name=v9: not known; allowed: v1, v1_full_conv"),
        ({"name": "v1", "width_mult": 0}, "model.width_mult=0: must be a number from 0.01"),
        ({"name": "v1", "width_mult": float("nan")}, "model.width_mult=nan: must be"),
        ({"name": "v1", "num_classes": 0}, "model.num_classes=0: must be"),
        ({"name": "v1", "dropout": 1.0}, "model.dropout=1.0: must be in"),
        ({"name": "v1", "stem_stride": 3}, "model.stem_stride=3: must be 1 or 2"),
        ({"name": "v1", "activation": "tanh"}, "model.args.activation=tanh: not known"),
        ({"name": "v2", "activation": "relu"}, "model.args.activation=relu: not an option of v2"),
        ({"name": "v1", "bn_eps": -1}, "model.bn_eps=-1: must be a number > 0"),
        ({"name": "v1", "bn_momentum": 5}, "model.bn_momentum=5: must be in (0, 1]"),
        ({"name": "v3_small", "head_width": 0}, "model.args.head_width=0: must be"),
        ({"name": "v3_small", "head_width": "a"}, "head_width=a: must be a whole number or null"),
        ({"name": "v3_small", "width_rule": 1}, "width_rule=1: must be text"),
        ({"name": "v3_small", "width_rule": "no"}, "not known; allowed: paper, timm, torchvision"),
        ({"name": "v2", "width_rule": "no"}, "not known; allowed: paper, divisor4, tonylins"),
        ({"name": "v3_large", "hswish": "some"}, "hswish=some: not known; allowed: table, none"),
        ({"name": "v3_small", "head": 1}, "allowed: head_width, width_rule, hswish"),
        ({"name": "v4_conv_small", "head": 1}, "head=1: not an option of v4_conv_small"),
    ],
)
def test_bad_input_is_refused_in_one_line(options, message):
    with pytest.raises(InputError) as caught:
        build_model(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_branches_are_dropped_in_training_only_and_more_often_with_depth():
    model = build_model("v2", num_classes=10, stochastic_depth=0.5)
    places = [block.drop_branch.p for block in model.blocks]
    assert places == [0.5 * index / 17 for index in range(17)]
    images = torch.randn(2, 3, 64, 64)
    model.eval()
    assert torch.equal(model(images), model(images))
    plain = build_model("v2", num_classes=10)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain.eval()(images), model(images))
    model.train()
    features = torch.randn(64, 24, 8, 8)
    out = model.blocks[2].drop_branch(torch.ones_like(features))
    dropped = (out == 0).flatten(1).all(1)
    assert 0 < dropped.sum() < 32
    with pytest.raises(InputError, match="model.stochastic_depth=0.1: v1 has no shortcuts"):
        build_model("v1", stochastic_depth=0.1)
    with pytest.raises(InputError, match=r"stochastic_depth=1: must be in \[0, 1\)"):
        build_model("v2", stochastic_depth=1)
