"""The page about latency: fresh, and only as long as the figures bear it out."""

import copy
import json

import pytest

from docs.build import latency, timings
from mobilenet_exp.core.errors import InputError


@pytest.fixture(scope="module")
def found():
    return latency.read(latency.RECORD)


@pytest.fixture(scope="module")
def gpus():
    return [latency.read(path) for path in sorted(latency.DOCS.glob(latency.OF_GPUS))]


def test_the_page_is_fresh(found, gpus):
    text = latency.page(found, gpus)
    assert text == latency.PAGE.read_text(), "stale: python -m docs.build.latency"


def test_the_pictures_show_the_figures_of_now(found):
    for picture in (latency.MADDS, latency.TOP1, latency.LAYERS):
        assert latency.digest(found) in picture.read_text(), "stale: python -m docs.build.latency"


def test_the_page_has_the_old_table_s_cells_and_ours(found):
    text = latency.page(found, [])
    for name in ("resnet18", "alexnet", "vgg16", "squeezenet1_0", "v1", "v2", "v3_large"):
        assert text.count(f"| {name} | ") >= 2
    # printed by the old repository
    for printed in ("73.6", "77.0", "9.8", "2.3"):
        assert f" {printed} |\n" in text
    assert found["machine"]["where"] in text


def test_figures_that_contradict_the_text_write_no_page(found):
    slow = copy.deepcopy(found)
    for row in slow["rows"]:
        row["latency_ms"] = {"v2": 1e6, "v3_large": 1e7}.get(row["model"], row["latency_ms"])
    with pytest.raises(ValueError, match="MobileNets are faster than resnet18; they are not: v2"):
        latency.check_conclusions(slow)
    without = copy.deepcopy(found)
    without["rows"] = [row for row in without["rows"] if row["model"] != "resnet18"]
    with pytest.raises(ValueError, match="compares with resnet18, which was not timed"):
        latency.check_conclusions(without)
    fast = copy.deepcopy(found)
    row = next(row for row in fast["rows"] if row["model"] == "v2")
    row["latency_ms"] = 1e-6
    with pytest.raises(ValueError, match="v2 gains less time than multiply-adds, in eager"):
        latency.check_conclusions(fast)


def test_cells_that_were_not_timed_write_no_page(found):
    refused = copy.deepcopy(found)
    row = next(row for row in refused["rows"] if row["model"] == "resnet18")
    row |= {"latency_ms": None, "problem": "memory does not suffice"}
    with pytest.raises(ValueError, match="resnet18 was not timed in eager: memory does not suf"):
        latency.check_conclusions(refused)
    # a file of another runtime
    row |= {"model": "net.onnx", "runtime": "torch_export", "latency_ms": 1.0, "problem": ""}
    with pytest.raises(ValueError, match="net.onnx was timed in torch_export, resnet18 was not"):
        latency.check_conclusions(refused)


def test_other_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    for name in ("other.json", "none.json"):
        with pytest.raises(InputError, match=f"{name}: is no benchmark's latency.json"):
            latency.main([str(tmp_path / name)])


def test_what_the_page_has_no_place_for_is_refused(found, tmp_path):
    other = found | {"machine": found["machine"] | {"where": "mps, float32, A Chip"}}
    (tmp_path / "mps.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match="mps.json: was measured on mps, float32, A Chip, which"):
        latency.main([str(tmp_path / "mps.json")])


def test_8_bits_are_told_as_they_are(found):
    text = latency.page(found, [])
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
    ms = f"{row['latency_ms']:.1f}" if row["latency_ms"] >= 1 else f"{row['latency_ms']:.2f}"
    assert f" {ms} ({plain / row['latency_ms']:.1f}) |\n" in text
    changed = copy.deepcopy(found)
    for each in changed["rows"]:
        if each["runtime"] == "executorch_int8":
            each["latency_ms"] = {"v2": 1e6, "resnet18": 1e-5}.get(each["model"], 1e-6)
    words = "executorch is slower in int8 in 2 of 20 cells; no faster than resnet18 in int8: v2"
    assert words in " ".join(latency.page(changed, []).split())
    refused = copy.deepcopy(found)
    for each in refused["rows"]:
        if (each["runtime"], each["model"]) == ("openvino_int8", "v1"):
            each |= {"latency_ms": None, "problem": "does not take it: reasons"}
    assert "- v1, openvino_int8, batch 1: does not take it: reasons" in latency.page(refused, [])
    without = copy.deepcopy(found)
    without["rows"] = timings.in_float(found["rows"])
    assert "In int8" not in latency.page(without, [])


def test_where_a_mobilenet_is_no_faster_is_said(found):
    changed = copy.deepcopy(found)
    for row in changed["rows"]:
        is_slow = (row["model"], row["runtime"], row["batch_size"]) == ("v2", "folded", 16)
        # faster than multiply-adds promise would be another contradiction
        row["latency_ms"] = {"resnet18": 10.0}.get(row["model"], 10 if is_slow else 9.9)
    words = "every runtime in float32 on this processor except v2 at batch 16 in folded. Their"
    assert words in " ".join(latency.page(changed, []).split())


def _on_a_gpu(found, *rows):
    cells = [("v2", 1, "eager", 9.0), ("resnet18", 1, "eager", 3.0),
             ("v2", 1, "folded", 8.0), ("v2", 1, "cuda_graphs", 0.25), *rows]  # fmt: skip
    machine = found["machine"] | {"where": "cuda, float32, A Card", "precision": "float32"}
    names = ("model", "batch_size", "runtime", "latency_ms")
    of_v2 = next(row for row in found["rows"] if row["model"] == "v2")
    made = [of_v2 | dict(zip(names, cell, strict=True)) for cell in cells]
    return found | {"machine": machine, "rows": made, "one_call": []}


def test_figures_of_a_gpu_stand_in_a_section_of_their_own(found):
    gpu = _on_a_gpu(found, ("v2", 1, "compiled", None), ("v2", 256, "cuda_graphs", 8.0))
    gpu["rows"][4]["problem"] = "does not fit"
    gpu["one_call"] = [
        {"model": "v2", "batch_size": 256, "ms": 2.0, "published_ms": 3.0},
        {"model": "v2", "batch_size": 1, "ms": 0.5, "published_ms": 3.0},
    ]
    text = " ".join(latency.page(found, [gpu]).split())
    assert "GPUs: [latency_cuda_float32.json](latency_cuda_float32.json). Times" in text
    assert "## On a GPU A GPU has done" in text
    assert "| 9.0 | 8.0 (1.1) | 0.25 (36.0) | - |" in text
    assert "At batch 1, the same kernels take 32.0 times as long launched one by one" in text
    assert "No faster than resnet18: v2 at batch 1 in eager." in text
    assert "Not timed: - v2, compiled, batch 1: does not fit" in text
    assert "| v2 | 256 | 2.0 | - | 3.0 | | v2 | 1 | 0.50 | 9.0 | 3.0 |" in text
    assert "On a GPU" not in latency.page(found, [])
    slow = copy.deepcopy(gpu)
    slow["rows"][3]["latency_ms"] = 8.0
    with pytest.raises(ValueError, match="launching together gains time in cuda_graphs at batch 1"):
        latency.check_gpu_conclusions(slow)
    slow["rows"] = slow["rows"][4:5]
    with pytest.raises(ValueError, match="holds no network that was timed"):
        latency.check_gpu_conclusions(slow)


def test_a_record_takes_the_place_of_its_own_kind(found, tmp_path, monkeypatch):
    for name in ("RECORD", "PAGE", "MADDS", "TOP1", "LAYERS"):
        monkeypatch.setattr(latency, name, tmp_path / getattr(latency, name).name)
    monkeypatch.setattr(latency, "DOCS", tmp_path)
    latency.RECORD.write_text(json.dumps(found))
    given = tmp_path / "given.json"
    given.write_text(json.dumps(_on_a_gpu(found)))
    latency.main([str(given)])
    assert json.loads((tmp_path / "latency_cuda_float32.json").read_text()) == _on_a_gpu(found)
    assert json.loads(latency.RECORD.read_text()) == found
    assert "A Card" in latency.PAGE.read_text()
    with pytest.raises(InputError, match="given.json: is another benchmark for latency_cuda_fl"):
        latency.main([str(given), str(given)])
    # and it stays when the other kind is measured again
    latency.main([str(latency.RECORD)])
    assert "A Card" in latency.PAGE.read_text()
    assert latency.digest(found) in latency.MADDS.read_text()
