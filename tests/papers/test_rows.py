"""The published rows: what is printed, what is built, and how a row is found."""

import pytest

from mobilenet_exp import build_model, list_models, paper_row, profile_model
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.papers.rows import AUTHORS, NOT_BUILT, paper_rows


@pytest.mark.parametrize(
    ("model", "width", "resolution", "top1", "madds_m", "params_m", "source"),
    [
        # typed from the papers, not from the file
        ("v1", 1.0, 224, 70.6, 569, 4.2, "paper"),
        ("v1", 0.25, 224, 50.6, 41, 0.5, "paper"),
        ("v1", 1.0, 160, 67.2, 290, 4.2, "paper"),
        ("v2", 1.0, 224, 72.0, 300, 3.4, "paper"),
        ("v2", 1.4, 224, 74.7, 585, 6.9, "paper"),
        ("v2", 0.35, 96, 45.5, 11, 1.66, "slim"),
        ("v3_large", 1.0, 224, 75.2, 219, 5.4, "paper"),
        ("v3_small", 1.0, 224, 67.4, 56, 2.5, "paper"),
        ("v3_small", 0.35, 224, 49.8, 12, 1.4, "paper_appendix"),
        ("v3_large", 1.0, 256, 76.0, 282, 5.4, "paper_appendix"),
        ("v3_large_minimalistic", 1.0, 224, 72.3, 209, 3.9, "slim"),
        ("v3_small_minimalistic", 1.0, 224, 61.9, 65, 2.0, "slim"),
        ("v1_full_conv", 1.0, 224, 71.7, 4866, 29.3, "paper"),
        ("v1_shallow", 1.0, 224, 65.3, 307, 2.9, "paper"),
        ("v3_edgetpu", 0.75, 224, 73.5, 624, 2.9, "slim_int8"),
        ("kuanwang_v3_large", 1.0, 224, 72.8, 224, 5.48, "kuan-wang"),
        ("kuanwang_v3_small", 1.0, 224, 67.4, 63, 2.94, "kuan-wang"),
        ("v4_conv_small", 1.0, 224, 73.8, 200, 3.8, "paper"),
        ("v4_hybrid_large", 1.0, 384, 83.4, 7200, 35.9, "paper"),
    ],
)
def test_default_lookup_finds_the_authors_row(
    model, width, resolution, top1, madds_m, params_m, source
):
    row = paper_row(model, width_mult=width, resolution=resolution)
    assert (row.top1, row.madds_m, row.params_m, row.source) == (top1, madds_m, params_m, source)


def test_a_source_can_be_named():
    assert paper_row("v1", source="marvis:sgd").top1 == 68.848
    assert paper_row("v1", source="marvis:rmsprop").top5 == 0.494
    early = paper_row("v3_small", source="paper_early")
    assert (early.madds_m, early.params_m, early.options) == (66, 2.9, {"head_width": 1280})


def test_no_row_is_none():
    assert paper_row("v2", width_mult=0.6) is None
    assert paper_row("v2", source="nobody") is None


def test_every_row_is_named_once_and_has_a_source():
    keys = [(row.model, row.width_mult, row.resolution, row.source) for row in paper_rows()]
    assert len(set(keys)) == len(keys)
    assert all(row.citation for row in paper_rows())
    # kuan-wang's README leaves two accuracies out
    unmeasured = {(row.model, row.width_mult) for row in paper_rows() if row.top1 is None}
    assert unmeasured == {("kuanwang_v3_large", 0.75), ("kuanwang_v3_small", 0.75)}
    assert {row.source for row in paper_rows()} > set(AUTHORS)


def test_nets_that_are_not_built_are_named():
    models = {row.model for row in paper_rows()}
    # a net that is built here may be one that nobody published
    assert models <= {*list_models(), *NOT_BUILT}
    assert set(NOT_BUILT) <= models


@pytest.mark.parametrize("kind", ["madds", "params"])
def test_a_print_that_is_not_reached_is_said_so(kind):
    """Within one unit of the last printed place, or `unreached` names the two figures."""
    for row in paper_rows():
        printed = getattr(row, f"{kind}_m")
        if printed is None:
            continue
        places = len(f"{printed:g}".partition(".")[2])
        # 4.2 prints one place; 5.40 of a CSV reads as 5.4, which only widens the unit
        counted = row.madds_as_printed if kind == "madds" else row.params
        is_reached = abs(printed - counted / 1e6) < 10.0**-places
        assert is_reached or f"{kind} {printed:g} M printed" in row.unreached, row


@pytest.mark.parametrize(
    ("model", "width", "as_printed", "plain", "params"),
    [
        # both counts by kuan-wang's own tool and by hooks on the repository's modules
        ("kuanwang_v3_large", 1.0, 223807306, 219799200, 5476416),
        ("kuanwang_v3_large", 0.75, 148372740, 145327960, 3914944),
        ("kuanwang_v3_small", 1.0, 62586082, 60119520, 2938368),
        ("kuanwang_v3_small", 0.75, 45646060, 43558872, 2376248),
    ],
)
def test_kuan_wang_s_column_is_reproduced_by_its_own_convention(
    model, width, as_printed, plain, params
):
    net = build_model(model, width_mult=width)
    assert profile_model(net, 224, "kuanwang") == (as_printed, params)
    assert profile_model(net, 224) == (plain, params)
    row = paper_row(model, width_mult=width)
    assert (row.madds_as_printed, row.madds, row.params) == (as_printed, plain, params)
    # 224, 148, 63 and 46 M are printed
    assert round(as_printed / 1e6) == row.madds_m


def test_an_unknown_convention_is_refused():
    with pytest.raises(InputError, match="convention=thop: not known; allowed: paper, kuanwang"):
        profile_model(build_model("v1"), 224, "thop")
