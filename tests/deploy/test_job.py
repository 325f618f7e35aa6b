"""A benchmark's folder: figures, pictures, W&B."""

import csv
import json

import pytest
from PIL import Image

from mobilenet_exp import compose
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.deploy import job, latency
from mobilenet_exp.deploy.job import bench
from mobilenet_exp.deploy.pictures import pareto_front

WORDS = ("models=[{name: v3_small, width_mult: 0.35},torchvision:squeezenet1_1]",
         "batch_sizes=[2,1]", "resolution=64", "rounds=2", "warmup=0",
         "run.device=cpu")  # fmt: skip


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch):
    monkeypatch.setattr(latency, "REST", 0.0)
    monkeypatch.setattr(latency, "TURN_MS", 0.0)
    monkeypatch.setattr(latency, "SIDE_OF_PRODUCT", 256)


def _bench(tmp_path, *words):
    return bench(compose(*WORDS, f"run.root={tmp_path}", *words, program="bench"))


def test_a_benchmark_leaves_its_figures_and_pictures(tmp_path, capsys):
    found = _bench(tmp_path, "run.wandb=offline", "method=one_call", "layers=v3_small 0.35")
    out = capsys.readouterr().out
    (folder,) = tmp_path.glob("bench-*")
    assert json.loads((folder / "latency.json").read_text()) == json.loads(json.dumps(found))
    rows = list(csv.DictReader((folder / "latency.csv").open()))
    assert [row["model"] for row in rows[:4]] == ["v3_small 0.35"] * 2 + ["squeezenet1_1"] * 2
    assert float(rows[0]["latency_ms"]) == found["rows"][0]["latency_ms"]
    for name in ("madds.png", "layers.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 400
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 10
    machine = found["machine"]
    assert machine["peak_gmacs_per_s"] > 0
    assert machine["versions"]["torch"]
    assert str(machine["threads"]) in machine["where"]
    for text in ("batch 2, 64 px, on cpu, float32", "one call in training mode", "Titan X",
                 "layers of v3_small 0.35", "all depthwise", "W&B: offline"):  # fmt: skip
        assert text in out
    # two networks with no published top-1 at 64 px
    assert not (folder / "top1.png").exists()
    assert found["one_call"][0]["published_ms"] is None
    # a second one does not overwrite it
    before = (folder / "latency.json").read_text()
    _bench(tmp_path, "run.wandb=disabled", "batch_sizes=[1]", "runtimes=[eager]")
    assert len(list(tmp_path.glob("bench-*"))) == 2
    assert (folder / "latency.json").read_text() == before


def test_nothing_is_written_for_bad_input(tmp_path):
    with pytest.raises(InputError, match="layers=v2: not in the table: v3_small 0.35, squeezenet"):
        _bench(tmp_path, "layers=v2")
    with pytest.raises(InputError, match="runtimes=tensorrt: not known"):
        _bench(tmp_path, "runtimes=[tensorrt]")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_kept_is_refused_before_anything_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "measure_latency", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="run.root=.*cannot hold the run's folder"):
        _bench(tmp_path / "file", "run.wandb=disabled")
    with pytest.raises(InputError, match="run.wandb=online"):
        _bench(tmp_path, "run.wandb=online")


def test_the_front_is_what_none_beats():
    points = [
        (3.0, 70.0, "c"),
        (1.0, 60.0, "a"),
        (2.0, 59.0, "b"),
        (2.5, 65.0, "d"),
        (4.0, 70.0, "e"),
    ]
    assert [name for _, _, name in pareto_front(points)] == ["a", "d", "c"]
