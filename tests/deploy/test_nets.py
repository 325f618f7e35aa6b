"""Which networks a benchmark times: names, options, sides."""

import pytest
import torch

from mobilenet_exp import compose, train
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.deploy.nets import build_nets


def test_ours_have_widths_options_and_sides_of_their_own():
    plain, narrow, other = build_nets(
        [
            "v3_small",
            {"name": "v3_small", "width_mult": 0.5, "resolution": 160},
            {"name": "v2", "num_classes": 10},
        ],
        224,
    )
    assert [plain.title, narrow.title, other.title] == [
        "v3_small",
        "v3_small 0.5 160 px",
        "v2 num_classes=10",
    ]
    assert (plain.side, narrow.side) == (224, 160)
    assert other.model.classifier.out_features == 10
    assert not any(net.model.training for net in (plain, narrow, other))
    # of the papers' rows, each for its own width and side
    assert plain.top1 == 67.4
    assert (narrow.top1, other.top1) == (None, None)


def test_peers_come_from_torchvision_and_timm():
    theirs, timms = build_nets(["torchvision:squeezenet1_1", "timm:mobilenetv3_small_050"], 64)
    assert (theirs.title, timms.title) == ("squeezenet1_1", "timm:mobilenetv3_small_050")
    assert theirs.profile.params == 1235496
    assert theirs.top1 is None
    assert build_nets(["torchvision:squeezenet1_1"], 224)[0].top1 == 58.178
    # of weights that were scored at 480 px
    assert build_nets(["torchvision:efficientnet_v2_m"], 224)[0].top1 is None


def test_a_run_s_network_has_its_own_side_and_weights(tmp_path):
    words = ("data=fake", "data.args={num_images: 8, num_classes: 2}", "model.width_mult=0.35")
    words += ("data.resolution=64", "data.batch_size=4", "train.epochs=1", "run.device=cpu")
    found = train(compose(*words, f"run.root={tmp_path}", "run.wandb=disabled"))
    path = f"{tmp_path}/{found['name']}/checkpoints/best.pt"
    (net,) = build_nets([path], 224)
    assert (net.side, net.title) == (64, f"{found['name']}/best 64 px")
    state = torch.load(path, weights_only=True)["model"]
    assert torch.equal(net.model.classifier.weight, state["classifier.weight"])


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("torchvision:lenet", "models=torchvision:lenet: not a classifier of"),
        # a detector would fetch weights for its backbone
        ("torchvision:fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn: not a classifier of"),
        ("timm:nope", "models=timm:nope: not known to timm.list_models"),
        ("v9", "model.name=v9: not known"),
        ("nowhere.pt", "nowhere.pt: no such file"),
        (3, "models=3: needs a name, as {name: v3_small, width_mult: 0.5}"),
        ({"width_mult": 0.5}, "needs a name"),
        ({"name": "v2", "depth": 3}, "models=v2: has no depth; allowed: resolution, "),
        ({"name": "v2", "width_mult": -1}, "models=v2: width_mult: -1"),
        ({"name": "v2", "width_mult": "wide"}, "models=v2: width_mult: wide"),
        ({"name": "v2", "resolution": 3}, "resolution=3: must be a whole number of pixels"),
        ({"name": "v2", "resolution": "big"}, "resolution: big is no whole number"),
        ({"name": "timm:resnet10t", "width_mult": 2}, "width_mult is for our own networks"),
    ],
)
def test_what_cannot_be_built_is_one_line(entry, problem):
    with pytest.raises(InputError) as caught:
        build_nets([entry], 224)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_side_that_does_not_fit_and_a_name_given_twice_are_refused():
    with pytest.raises(InputError, match="resolution=32: torchvision:alexnet does not take it"):
        build_nets(["torchvision:alexnet"], 32)
    with pytest.raises(InputError, match="models=v2: is named twice"):
        build_nets(["v2", "v1", "v2"], 64)
