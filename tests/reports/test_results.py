"""The page about our own results: fresh, and refused where its figures would not be whole."""

import copy
import json
import shutil

import pytest

from docs.build import results
from mobilenet_exp.core.errors import InputError


@pytest.fixture(scope="module")
def found():
    return json.loads(results.RECORD.read_text())


def test_the_page_is_fresh(found):
    assert results.page(found) == results.PAGE.read_text(), "stale: python -m docs.build.results"


def test_the_picture_shows_the_figures_of_now(found):
    stale = "stale: python -m docs.build.results"
    assert results.digest(found) in results.PICTURE.read_text(), stale


def test_the_record_has_every_generation_and_width(found):
    nets = {(row["model"], row["width_mult"]) for row in found["rows"]}
    assert {name[:2] for name, _ in nets} == {"v1", "v2", "v3", "v4"}
    assert {width for name, width in nets if name == results.SWEPT} == {0.35, 0.5, 0.75, 1.0}
    assert {row["data"] for row in found["rows"]} == set(results.SETS)


def test_a_mean_is_that_of_the_seeds(found):
    three = [row for row in found["rows"] if (row["model"], row["data"]) == ("v2", "digits")]
    rows = [row | {"top1": top1} for row, top1 in zip(three, (90.0, 92.0, 97.0), strict=True)]
    assert results.Cell(rows).describe() == "93.00 (90.00 - 97.00)"


def test_missing_runs_write_no_page(found):
    fewer = copy.deepcopy(found)
    fewer["rows"].remove(next(row for row in fewer["rows"] if row["model"] == "v2"))
    with pytest.raises(ValueError, match="v2 1 on digits has 2 runs, not 3"):
        results.page(fewer)
    fewer["rows"] = [
        row for row in found["rows"] if (row["model"], row["data"]) != ("v1", "photos")
    ]
    with pytest.raises(ValueError, match="v1 1 was not trained on photos"):
        results.page(fewer)


def test_a_page_whose_text_the_runs_contradict_is_not_written(found):
    worse = copy.deepcopy(found)
    (first, *_) = (row for row in worse["rows"] if (row["model"], row["data"]) == ("v1", "digits"))
    first["top1"] = 90.0
    with pytest.raises(ValueError, match="says that every network reaches 99 %"):
        results.page(worse)


def _write_run(root, name, **changes):
    folder = root / name
    folder.mkdir(parents=True)
    row = dict.fromkeys(results.KEYS, 1) | {"model": "v1", "data": "digits", "name": name}
    images = {"num_train": 3, "num_val": 2}
    (folder / "results.json").write_text(json.dumps(row | {"images": images}))
    (folder / "config.yaml").write_text("train: {seed: 0}\nmodel: {}\ndata: {}\nrun: {}\n")
    start = {"git_commit": "0" * 40, "versions": {"torch": "2"}, "processor": "P"} | changes
    (folder / "provenance.json").write_text(json.dumps({"starts": [start]}))
    return folder


def test_runs_of_several_origins_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no runs"):
        results.read(tmp_path)
    _write_run(tmp_path, "a")
    assert len(results.read(tmp_path)["rows"]) == 1
    other = _write_run(tmp_path, "b", processor="Q")
    with pytest.raises(ValueError, match="several commits, libraries or processors"):
        results.read(tmp_path)
    shutil.rmtree(other)
    (_write_run(tmp_path, "c") / "results.json").unlink()
    with pytest.raises(ValueError, match="c is "):
        results.read(tmp_path)


def test_runs_of_another_version_are_refused(tmp_path):
    folder = _write_run(tmp_path, "a")
    found = json.loads((folder / "results.json").read_text())
    for key in ("images", "madds"):
        less = {name: value for name, value in found.items() if name != key}
        (folder / "results.json").write_text(json.dumps(less))
        with pytest.raises(ValueError, match=f"a has no '{key}' in its results"):
            results.read(tmp_path)
    (folder / "results.json").write_text(json.dumps(found))
    (folder / "provenance.json").unlink()
    with pytest.raises(ValueError, match="a does not say which commit"):
        results.read(tmp_path)


def test_a_page_needs_a_sweep_of_width(found):
    narrow = copy.deepcopy(found)
    narrow["rows"] = [row for row in narrow["rows"] if row["width_mult"] == 1]
    with pytest.raises(ValueError, match="has no sweep of v3_small's width"):
        results.page(narrow)


def test_code_that_is_not_committed_is_refused(tmp_path):
    _write_run(tmp_path, "a", git_commit="0" * 40 + "-dirty")
    with pytest.raises(ValueError, match="not committed"):
        results.read(tmp_path)


def test_a_bad_folder_is_one_line(tmp_path):
    with pytest.raises(InputError, match="holds no runs"):
        results.main([str(tmp_path)])
    with pytest.raises(InputError, match="takes one argument"):
        results.main(["a", "b"])
