"""The page about latency: fresh, and only as long as the figures bear it out."""

import copy

import pytest

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.reports import latency


@pytest.fixture(scope="module")
def found():
    return latency.read(latency.RECORD)


def test_the_page_is_fresh(found):
    assert latency.page(found) == latency.PAGE.read_text(), "stale: python -m mobilenet_exp latency"


def test_the_pictures_show_the_figures_of_now(found):
    for picture in (latency.MADDS, latency.TOP1, latency.LAYERS):
        assert latency.digest(found) in picture.read_text(), (
            "stale: python -m mobilenet_exp latency"
        )


def test_the_page_has_the_old_table_s_cells_and_ours(found):
    text = latency.page(found)
    for name in ("resnet18", "alexnet", "vgg16", "squeezenet1_0", "v1", "v2", "v3_large"):
        assert text.count(f"| {name} | ") >= 2
    # printed by the old repository
    for printed in ("73.6", "77.0", "9.8", "2.3"):
        assert f" {printed} |\n" in text
    assert found["machine"]["where"] in text


def test_figures_that_contradict_the_text_write_no_page(found):
    slow = copy.deepcopy(found)
    row = next(row for row in slow["rows"] if row["model"] == "v2")
    row["latency_ms"] = 1e6
    with pytest.raises(ValueError, match="the page says that v2 is faster than resnet18 in eager"):
        latency.page(slow)
    without = copy.deepcopy(found)
    without["rows"] = [row for row in without["rows"] if row["model"] != "resnet18"]
    with pytest.raises(ValueError, match="compares with resnet18, which was not timed"):
        latency.page(without)
    fast = copy.deepcopy(found)
    row = next(row for row in fast["rows"] if row["model"] == "v2")
    row["latency_ms"] = 1e-6
    with pytest.raises(ValueError, match="v2 gains less time than multiply-adds, in eager"):
        latency.page(fast)


def test_cells_that_were_not_timed_write_no_page(found):
    refused = copy.deepcopy(found)
    row = next(row for row in refused["rows"] if row["model"] == "resnet18")
    row |= {"latency_ms": None, "problem": "memory does not suffice"}
    with pytest.raises(ValueError, match="resnet18 was not timed in eager: memory does not suf"):
        latency.page(refused)
    # a file of another runtime
    row |= {"model": "net.onnx", "runtime": "torch_export", "latency_ms": 1.0, "problem": ""}
    with pytest.raises(ValueError, match="net.onnx was timed in torch_export, resnet18 was not"):
        latency.page(refused)


def test_other_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    for name in ("other.json", "none.json"):
        with pytest.raises(InputError, match=f"{name}: is no benchmark's latency.json"):
            latency.main([str(tmp_path / name)])


def test_8_bits_are_told_as_they_are(found):
    text = latency.page(found)
    (row,) = (
        row
        for row in found["rows"]
        if (row["model"], row["runtime"], row["batch_size"]) == ("v3_large", "executorch_int8", 1)
    )
    (plain,) = (
        each["latency_ms"]
        for each in found["rows"]
        if (each["model"], each["runtime"], each["batch_size"]) == ("v3_large", "executorch", 1)
    )
    cell = f"{row['latency_ms']:.1f} ({plain / row['latency_ms']:.1f})"
    assert f" {cell} |\n" in text
    changed = copy.deepcopy(found)
    for each in changed["rows"]:
        if each["runtime"] == "executorch_int8":
            each["latency_ms"] = {"v2": 1e6, "resnet18": 1e-5}.get(each["model"], 1e-6)
    assert "executorch is slower in 8 bits in 2 of 20 cells, and v2 at batch 16 and 1 are no" in (
        " ".join(latency.page(changed).split())
    )
    refused = copy.deepcopy(found)
    for each in refused["rows"]:
        if (each["runtime"], each["model"]) == ("openvino_int8", "v1"):
            each |= {"latency_ms": None, "problem": "does not take it: reasons"}
    assert "- v1, openvino_int8, batch 1: does not take it: reasons" in latency.page(refused)
    without = copy.deepcopy(found)
    without["rows"] = latency.in_float(found["rows"])
    assert "In 8 bits" not in latency.page(without)
