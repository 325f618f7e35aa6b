"""A network as a file of another runtime: exact, self-describing, scored like any weights."""

import json
import re
import runpy
import sys

import pytest
import torch
from programs import ROOT

from mobilenet_exp import compose, train
from mobilenet_exp.core.errors import InputError, RunError
from mobilenet_exp.datasets.photos import find_photos
from mobilenet_exp.deploy import export as exporting
from mobilenet_exp.deploy.export import export
from mobilenet_exp.deploy.formats import FORMATS, to_onnx
from mobilenet_exp.deploy.nets import build_nets
from mobilenet_exp.deploy.runtimes import prepare
from mobilenet_exp.deploy.samples import real_images
from mobilenet_exp.evaluation.classify import classify_photos
from mobilenet_exp.evaluation.job import evaluate
from mobilenet_exp.machine.compute import Compute
from mobilenet_exp.weights.load import load_exported, model_from_checkpoint
from mobilenet_exp.weights.runtime_files import METADATA_KEY, read_exported

PAGE = (ROOT / "docs" / "deploy.md").read_text()
FAKE = ("data=fake", "data.args={num_images: 24, num_classes: 3}", "data.resolution=64")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("exported")
    words = ("model.width_mult=0.35", "data.batch_size=8", "train.epochs=1", "run.device=cpu")
    found = train(compose(*FAKE, *words, f"run.root={root}", "run.wandb=disabled"))
    return root / found["name"] / "checkpoints" / "best.pt"


def _export(run, *words):
    return export(compose(f"checkpoint={run}", *words, program="export"))


def _score(root, *words):
    common = ("run.device=cpu", "run.wandb=disabled", f"run.root={root}")
    return evaluate(compose(*FAKE, *common, *words, program="eval"))


@pytest.fixture(scope="module", params=FORMATS)
def file(request, run, tmp_path_factory):
    """The run's network in each form: its name, its path, what export has returned."""
    form = FORMATS[request.param]
    for library in form.libraries:
        pytest.importorskip(library)
    path = tmp_path_factory.mktemp(request.param) / f"net{form.ending}"
    return request.param, path, _export(run, f"format={request.param}", f"out={path}")


def test_a_file_answers_as_the_network_and_is_scored_alike(file, run, tmp_path):
    name, path, found = file
    assert found["path"] == str(path)
    assert 0 < found["difference"] < 1e-4
    assert found["agreement"] == 1
    loaded = load_exported(str(path))
    assert loaded.classes == ["0", "1", "2"]
    assert loaded.preprocessing.resolution == 64
    assert (loaded.config.name, loaded.config.width_mult) == ("v3_small", 0.35)
    # any number of images, as in a last batch
    model = model_from_checkpoint(run)
    images = torch.randn(5, 3, 64, 64)
    with torch.inference_mode():
        for count in (5, 1):
            part = images[:count]
            torch.testing.assert_close(loaded.model(part), model(part), rtol=1e-3, atol=1e-4)
    own, exported = _score(tmp_path, f"checkpoint={run}"), _score(tmp_path, f"weights={path}")
    for key in ("top1", "top5", "num_images", "madds", "params", "num_classes"):
        assert exported[key] == own[key]
    assert exported["loss"] == pytest.approx(own["loss"], abs=1e-4)
    (net,) = build_nets([str(path)], 224)
    # it is timed as networks are: OpenVINO's for the shape of the batch alone
    timed = prepare(net.own_runtime, net.model, images, Compute(torch.device("cpu"), threads=1))
    assert (timed is net.model) == (name != "openvino")
    torch.testing.assert_close(timed(images), net.model(images), rtol=1e-3, atol=1e-4)
    assert (net.side, net.profile.params) == (64, own["params"])
    assert sorted(path.parent.glob(".*")) == []


def test_the_page_s_script_names_a_photo_from_the_file_alone(file, tmp_path, monkeypatch, capsys):
    name, path, _ = file
    scripts = dict(re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", PAGE, re.S))
    assert len(scripts) == 1 + len(FORMATS)
    for each, text in scripts.items():
        assert "from mobilenet_exp" not in text
        (tmp_path / each).write_text(text)
    photo = str(find_photos()[1])
    loaded = load_exported(str(path))
    ((_, _, guesses),), _ = classify_photos(loaded, photo, torch.device("cpu"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "photo", raising=False)
    monkeypatch.setattr(sys, "argv", ["script", str(path), photo])
    capsys.readouterr()
    runpy.run_path(str(tmp_path / f"photo_{name}.py"))
    assert capsys.readouterr().out == f"{guesses[0][0]}\n"


def test_a_run_s_file_lies_in_its_folder_and_says_what_it_is(run, capsys):
    found = _export(run, "format=torch_export")
    out = capsys.readouterr().out
    assert "answers to 6 photographs differ from the network's by " in out
    assert f"python eval.py weights={found['path']}" in out
    assert found["path"].endswith(f"{run.parents[1].name}/exported/best.pt2")
    _, metadata = read_exported(found["path"])
    assert metadata.origin == str(run)
    assert metadata.form == "float32, BatchNorm folded"
    assert set(metadata.made_by["versions"]) >= {"torch", "timm"}
    assert metadata.model["stem_stride"] == 2


def test_images_are_real_ones(run):
    images = real_images(load_exported(_export(run, "format=torch_export")["path"]).preprocessing)
    assert images.shape == (6, 3, 64, 64)
    assert images.std((1, 2, 3)).min() > 0.3


def test_a_file_whose_answers_differ_is_not_written(run, tmp_path, monkeypatch):
    path = tmp_path / "net.pt2"
    path.write_bytes(b"an earlier one")
    wrong = FORMATS["torch_export"]._replace(write=_writes_another)
    monkeypatch.setitem(FORMATS, "torch_export", wrong)
    with pytest.raises(RunError, match="is not written: its answers differ from the network's by"):
        _export(run, "format=torch_export", f"out={path}")
    assert path.read_bytes() == b"an earlier one"
    assert [each.name for each in tmp_path.iterdir()] == ["net.pt2"]


def _writes_another(model, images, path, metadata):
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, 3)).eval()
    program = torch.export.export(other, (images,))
    torch.export.save(program, str(path), extra_files={METADATA_KEY: metadata})


def test_other_sides_are_exported_when_asked_for(run, tmp_path):
    path = tmp_path / "net.pt2"
    _export(run, "format=torch_export", f"out={path}", "resolution=96")
    loaded = load_exported(str(path))
    assert loaded.preprocessing.resolution == 96
    assert loaded.model(torch.randn(2, 3, 96, 96)).shape == (2, 3)


def test_what_cannot_be_exported_is_one_line(run, tmp_path, monkeypatch):
    for words, problem in (
        (("format=onnx", "out=net.pt2"), "out=net.pt2: onnx files end in .onnx"),
        (("format=tflite",), "format=tflite: not known; allowed: onnx, openvino"),
        (("model.width_mult=0.5",), "model.width_mult=0.5: is read from the checkpoint"),
        (("weights=x.pt",), "give exactly one of checkpoint=FILE and weights=FILE"),
    ):
        with pytest.raises(ValueError, match="^[^\n]+$") as caught:
            _export(run, *words)
        assert problem in str(caught.value)
    path = tmp_path / "net.pt2"
    _export(run, "format=torch_export", f"out={path}")
    with pytest.raises(InputError, match="is an exported file already"):
        export(compose(f"weights={path}", program="export"))
    monkeypatch.setattr(exporting.os, "replace", _full)
    with pytest.raises(RunError, match="could not be written: No space left on device"):
        _export(run, "format=torch_export", f"out={tmp_path}/new/folders/other.pt2")
    assert [each.name for each in tmp_path.iterdir()] == ["net.pt2"]


def test_what_a_library_does_not_take_is_one_line_and_leaves_nothing(run, tmp_path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("\n  no such operator\nmore words")

    form = FORMATS["torch_export"]._replace(write=refuse)
    monkeypatch.setitem(FORMATS, "torch_export", form)
    with pytest.raises(RunError, match=r"^net.pt2 could not be written: no such operator$"):
        _export(run, "format=torch_export", f"out={tmp_path}/new/net.pt2")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_file_are_not_overwritten(run, tmp_path):
    pytest.importorskip("openvino")
    (tmp_path / "net.bin").write_text("precious")
    with pytest.raises(InputError, match="out=.*net.xml: would overwrite .*net.bin, which belongs"):
        _export(run, "format=openvino", f"out={tmp_path}/net.xml")
    assert (tmp_path / "net.bin").read_text() == "precious"


def test_files_of_one_run_have_names_of_their_own(run):
    names = [
        _export(run, "format=torch_export", *words)["path"].rpartition("/")[2]
        for words in ((), ("resolution=96",), ("ema=false",))
    ]
    assert names == ["best.pt2", "best-r96.pt2", "best-noema.pt2"]


def _full(*_):
    raise OSError(28, "No space left on device")


def test_files_that_are_none_of_ours_are_refused_in_one_line(run, tmp_path):
    pytest.importorskip("onnxruntime")
    foreign, broken = tmp_path / "foreign.onnx", tmp_path / "broken.onnx"
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
    foreign.write_bytes(to_onnx(model, torch.randn(1, 3, 2, 2)))
    broken.write_bytes(foreign.read_bytes()[:100])
    path = tmp_path / "net.pt2"
    _export(run, "format=torch_export", f"out={path}")
    for words, problem in (
        (
            (f"weights={foreign}",),
            "has no metadata of its network; `python -m mobilenet_exp export`",
        ),
        ((f"weights={broken}",), "cannot be opened: "),
        ((f"weights={tmp_path}/none.pte",), "none.pte: no such file"),
        ((f"weights={path}", "model=v2"), "model.name=v2: is read from the exported file"),
        (
            (f"weights={path}", "run.precision=bfloat16"),
            "run.precision=bfloat16: an exported file has a precision of its own",
        ),
    ):
        with pytest.raises(InputError, match="^[^\n]+$") as caught:
            _score(tmp_path, *words)
        assert problem in str(caught.value)


def test_a_record_is_json():
    pytest.importorskip("onnx")
    import onnx

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
    text = json.dumps({"a": "\u00e4"})
    content = onnx.load_from_string(to_onnx(model, torch.randn(1, 3, 2, 2), text))
    assert {each.key: each.value for each in content.metadata_props}[METADATA_KEY] == text
