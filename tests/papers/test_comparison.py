"""Like is compared with like, and nothing else."""

import pytest

from mobilenet_exp.papers.comparison import NoPaperRow, compare

IMAGENET = ("data=imagenet",)


def _compare(config, num_classes, **options):
    return compare(config.model, config.data, num_classes, **options)


def test_the_row_s_own_experiment_is_compared_in_full(compose_config):
    found = _compare(compose_config(*IMAGENET, "model=v3_small"), 1000)
    assert found.reason is None
    assert found.paper.citation == "arXiv:1905.02244v5 Table 3"
    summary = found.summary(66.4, 86.0)
    assert summary["paper/comparable"] is True
    assert summary["delta/top1"] == pytest.approx(-1.0)
    assert summary["delta/madds_m"] == pytest.approx(56.5104 - 56)
    assert summary["delta/params_m"] == pytest.approx(2.542856 - 2.5)
    # the paper prints no top-5 for it
    assert "paper/top5" not in summary
    assert found.to_results(66.4, 86.0)["paper"]["top1"] == 67.4


def test_before_the_first_epoch_there_is_no_gap(compose_config):
    assert "delta/top1" not in _compare(compose_config(*IMAGENET), 1000).summary()


@pytest.mark.parametrize(
    ("words", "num_classes", "reason"),
    [
        ((), 10, "digits is not ImageNet"),
        (("data=imagefolder",), 1000, "imagefolder is not ImageNet"),
        ((*IMAGENET, "model.num_classes=1001"), 1001, "1001 classes"),
        ((*IMAGENET, "model.stem_stride=1"), 1000, "stem_stride 1"),
        ((*IMAGENET, "data.resolution=200"), 1000, "no row published for v3_small 1 at 200"),
    ],
)
def test_another_setting_shows_the_row_but_no_gap_in_accuracy(
    compose_config, words, num_classes, reason
):
    found = _compare(compose_config(*words), num_classes)
    assert reason in found.reason
    assert found.paper is None
    summary = found.summary(99.0, 100.0)
    assert summary["paper/comparable"] is False
    assert summary["paper/top1"] == 67.4
    assert "delta/top1" not in summary
    # the counts are of the net as published, whatever ran
    assert summary["published/madds_m"] == 56.5104
    results = found.to_results(99.0, 100.0)
    assert results["paper"] is None
    assert results["reference"]["counted"] == {"madds": 56510400, "params": 2542856}


def test_a_net_that_nobody_published_has_no_row(compose_config):
    found = _compare(compose_config(*IMAGENET, "model.width_mult=0.6"), 1000)
    assert isinstance(found, NoPaperRow)
    assert found.reason == "no row published for v3_small 0.6 at 224 px"
    assert found.to_results(1.0, 2.0)["reference"] is None
    found = _compare(compose_config("model.width_mult=0.6"), 10)
    assert found.reason.startswith("digits is not ImageNet")
    assert found.reason.endswith("; no row published for v3_small 0.6 at 32 px")


def test_the_early_head_finds_the_early_row(compose_config):
    found = _compare(compose_config(*IMAGENET, "+model.args.head_width=1280"), 1000)
    assert found.paper.source == "paper_early"
    assert found.published.params == 2946568


def test_an_activation_that_nobody_published_is_not_compared(compose_config):
    words = (*IMAGENET, "model=v1")
    for activation in ("relu", "relu6"):
        found = _compare(compose_config(*words, f"model.args.activation={activation}"), 1000)
        assert found.paper.top1 == 70.6
    found = _compare(compose_config(*words, "model.args.activation=hswish"), 1000)
    assert isinstance(found, NoPaperRow)
    assert "hswish" in found.reason


def test_resolution_finds_its_own_row(compose_config):
    config = compose_config(*IMAGENET, "model=v2", "model.width_mult=0.35", "data.resolution=96")
    found = _compare(config, 1000)
    assert (found.paper.top1, found.paper.source) == (45.5, "slim")


def test_a_part_of_imagenet_is_not_the_row_s_validation_set(compose_config):
    found = _compare(compose_config(*IMAGENET), 1000, num_images=49_999)
    assert found.reason == "49,999 images scored, ImageNet's validation set has 50,000"
    assert _compare(compose_config(*IMAGENET), 1000, num_images=50_000).reason is None


def test_published_weights_find_their_own_row(compose_config):
    config = compose_config(*IMAGENET, "model=v3_large")
    found = _compare(config, 1000, source="torchvision:IMAGENET1K_V2")
    assert (found.paper.top1, found.paper.source) == (75.274, "torchvision:IMAGENET1K_V2")


def test_an_ablation_finds_its_row_and_an_8_bit_row_no_gap(compose_config):
    config = compose_config(*IMAGENET, "model=v3_large", "+model.args.hswish='112'")
    assert _compare(config, 1000).paper.top1 == 75.0
    found = _compare(compose_config(*IMAGENET, "model=v3_edgetpu"), 1000)
    assert found.reason == "published for the int8 network only"
    assert found.summary(70.0, 90.0)["delta/madds_m"] == pytest.approx(0.669184)


def test_answers_in_8_bits_are_not_set_against_a_row_in_float(compose_config):
    found = _compare(compose_config(*IMAGENET, "model=v2"), 1000, is_int8=True)
    assert found.reason == "the network is int8, the row's is not"
    assert found.paper is None
    assert found.row.top1 == 72.0
