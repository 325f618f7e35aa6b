"""A benchmark's folder: figures, pictures, W&B."""

import csv
import json

import pytest
from PIL import Image

from mobilenet_exp import compose
from mobilenet_exp.core.errors import InputError, RunError
from mobilenet_exp.deploy import job, latency
from mobilenet_exp.deploy.job import bench
from mobilenet_exp.deploy.nets import Net
from mobilenet_exp.deploy.pictures import pareto_front
from mobilenet_exp.deploy.runtimes import RUNTIMES
from mobilenet_exp.machine.lock import is_locked

WORDS = ("models=[{name: v3_small, width_mult: 0.35},torchvision:squeezenet1_1]",
         "batch_sizes=[2,1]", "resolution=64", "rounds=2", "warmup=0",
         "run.device=cpu")  # fmt: skip


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch):
    monkeypatch.setattr(latency, "REST", 0.0)
    monkeypatch.setattr(latency, "TURN_MS", 0.0)
    monkeypatch.setattr(latency, "SIDE_OF_PRODUCT", {"cpu": 256})


def _bench(tmp_path, *words):
    return bench(compose(*WORDS, f"run.root={tmp_path}", *words, program="bench"))


def test_a_benchmark_leaves_its_figures_and_pictures(tmp_path, capsys, monkeypatch):
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
    # a second one does not overwrite it, and holds its folder while it lasts
    before, held = (folder / "latency.json").read_text(), []
    measure = job._measure

    def measured(*words):
        held.extend(each for each in tmp_path.glob("bench-*") if is_locked(each))
        return measure(*words)

    monkeypatch.setattr(job, "_measure", measured)
    _bench(tmp_path, "run.wandb=disabled", "batch_sizes=[1]", "runtimes=[eager]")
    assert len(list(tmp_path.glob("bench-*"))) == 2
    assert (folder / "latency.json").read_text() == before
    assert len(held) == 1
    assert folder not in held


def test_layers_are_of_the_network_of_that_title_or_of_the_only_one_of_that_name(tmp_path):
    two = "models=[v3_small,{name: v3_small, width_mult: 0.35}]"
    words = ("run.wandb=disabled", "batch_sizes=[1]", "runtimes=[eager]")
    assert _bench(tmp_path, two, *words, "layers=v3_small")["layers_of"] == "v3_small"
    one = "models=[{name: v3_small, width_mult: 0.35}]"
    assert _bench(tmp_path, one, *words, "layers=v3_small")["layers_of"] == "v3_small 0.35"
    two = "models=[{name: v1, width_mult: 0.25},{name: v1, width_mult: 0.5}]"
    with pytest.raises(InputError, match=r"layers=v1: is any of v1 0.25, v1 0.5"):
        _bench(tmp_path, two, *words, "layers=v1")


def test_layers_that_cannot_be_timed_cost_no_figures(tmp_path, monkeypatch, capsys):
    def hungry(*_, **__):
        raise RuntimeError("CUDA out of memory. Tried to allocate 3 GiB")

    monkeypatch.setattr(job, "measure_layers", hungry)
    found = _bench(tmp_path, "run.wandb=disabled", "batch_sizes=[1]", "layers=squeezenet1_1")
    assert "layers of squeezenet1_1: not timed: memory does not suffice" in capsys.readouterr().out
    assert found["layers"] == []
    assert len(list(tmp_path.glob("bench-*/latency.json"))) == 1


def test_pictures_of_cells_that_were_not_timed(tmp_path, monkeypatch):
    def refused(model, images, compute):
        raise RunError("does not take it: so many")

    monkeypatch.setitem(RUNTIMES._builders, "refused", refused)
    found = _bench(tmp_path, "run.wandb=disabled", "runtimes=[refused]")
    assert {row["problem"] for row in found["rows"]} == {"does not take it: so many"}
    (folder,) = tmp_path.glob("bench-*")
    # nothing to draw
    assert {each.name for each in folder.glob("*.png")} == set()


def test_exported_files_run_on_a_cpu_in_float32(tmp_path, monkeypatch):
    file = Net("f", "f.onnx", None, 32, None, own_runtime="onnxruntime")
    monkeypatch.setattr(job, "build_nets", lambda *_: [file])
    problem = "models=f.onnx: is for a CPU in float32 here, not cpu in bfloat16"
    with pytest.raises(InputError, match=problem):
        _bench(tmp_path, "run.precision=bfloat16")


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
