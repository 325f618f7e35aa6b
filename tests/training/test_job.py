"""A run from its configuration to its results: resumed, repeated, finished."""

import gzip
import itertools
import json
import shutil
from dataclasses import asdict, replace

import pytest
import timm
import torch
import torchvision
import yaml
from hard_run import TIMING, assert_same, metrics
from layout_nets import DLi14V3, MarvisV1, randomize
from PIL import Image
from states import crash_before_saving

from mobilenet_exp import (
    build_model,
    evaluate,
    export_weights,
    load_weights,
    model_from_checkpoint,
    train,
)
from mobilenet_exp.config.convert import to_config
from mobilenet_exp.config.identity import run_name
from mobilenet_exp.config.schema import EvalConfig, EvalRunConfig
from mobilenet_exp.core.errors import InputError, NonFiniteLossError
from mobilenet_exp.tracking import tracker as tracking
from mobilenet_exp.training import train as training
from mobilenet_exp.training.train import build_state
from mobilenet_exp.weights.checkpoint import load_checkpoint

# read by scripts and by later tools: names and types are a promise
RESULTS = {
    "name": str, "images": dict, "model": str, "width_mult": float, "data": str, "resolution": int,
    "num_classes": int, "data_root": type(None), "precision": str, "quantise": type(None),
    "madds": int, "params": int,
    "left_out": dict, "passed_over": dict, "top1": float, "top5": float,
    "best_epoch": int, "last_top1": float, "epochs": int, "seconds": float,
    "peak_memory_mb": float,
    "paper": type(None), "paper_reason": str, "reference": dict,
}  # fmt: skip

METRICS = {
    "epoch", "train/loss", "train/top1", "train/lr", "train/grad_norm", "val/loss",
    "speed/images_per_s", "speed/waiting_percent", "system/peak_memory_mb",
    "val/top1", "val/top5", "val/ece", "val/num_images",
}  # fmt: skip


def _rows(folder):
    return metrics(folder / "metrics.jsonl")


def test_a_run_leaves_what_it_promises(finished):
    config, results, folder = finished
    assert {key: type(value) for key, value in results.items()} == RESULTS
    assert json.loads((folder / "results.json").read_text()) == results
    assert to_config(yaml.safe_load((folder / "config.yaml").read_text())) == config
    rows = _rows(folder)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert set(rows[0]) == METRICS
    assert results["top1"] == max(row["val/top1"] for row in rows)
    assert rows[0]["val/num_images"] == 360
    for name in ("last.pt", "best.pt"):
        state = torch.load(folder / "checkpoints" / name, weights_only=True)
        assert to_config(state["config"]) == config
    assert load_checkpoint(folder / "checkpoints" / "last.pt")["epoch"] == 2


def test_a_digits_accuracy_is_never_held_against_imagenet(finished):
    _, results, _ = finished
    assert results["paper"] is None
    assert "not ImageNet" in results["paper_reason"]
    assert results["reference"]["row"]["top1"] == 49.8
    assert results["reference"]["delta"].keys() == {"madds_m", "params_m"}


def test_a_finished_run_returns_its_result_and_trains_nothing(finished, monkeypatch, capsys):
    config, results, _ = finished
    monkeypatch.setattr(training, "train_here", None)
    assert train(config) == results
    assert "is already finished" in capsys.readouterr().out


def test_an_interrupted_run_resumes_to_the_same_bits(quick, tmp_path):
    """Two epochs in one go equal one, a crash after logging the second, and a resume."""
    noise = ("data=fake", "data.resolution=32", "data.augment=affine", "train.epochs=2")
    words = (*noise, "model.dropout=0.5", "train.label_smoothing=0.1", "optimizer=rmsprop")
    whole = quick(*words, f"run.root={tmp_path}/whole")
    train(whole)
    cut = quick(*words, f"run.root={tmp_path}/cut")

    with crash_before_saving(2):
        train(cut)
    folder = tmp_path / "cut" / run_name(cut)
    assert "power cut" in (folder / "error.txt").read_text()
    assert [row["epoch"] for row in _rows(folder)] == [1, 2]
    train(cut)

    assert not (folder / "error.txt").exists()
    other = tmp_path / "whole" / run_name(whole)
    ours, theirs = (load_checkpoint(f / "checkpoints" / "last.pt") for f in (folder, other))
    assert_same(ours["model"], theirs["model"])
    assert_same(ours["optimizer"]["state"], theirs["optimizer"]["state"])
    for mine, its in zip(_rows(folder), _rows(other), strict=True):
        assert {k: v for k, v in mine.items() if k not in TIMING} == {
            k: v for k, v in its.items() if k not in TIMING
        }


def test_half_a_line_of_metrics_is_dropped_on_resume(tmp_path):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n!garbage!\n{"epoch": 2}\n{"epoch": 3, "tra')
    tracker = tracking.Tracker(
        path.parent, config={}, title="t", mode="disabled", project="p", tags=()
    )
    with tracker:
        tracker.keep_until(1)
        tracker.log(2, {"val/top1": 5.0})
    assert path.read_text() == '{"epoch": 1}\n{"epoch": 2, "val/top1": 5.0}\n'


def test_rmsprop_with_its_own_rate_learns_the_digits(quick):
    """The rule of the papers; the old repository's stayed at chance."""
    config = quick("optimizer=rmsprop", "model.width_mult=0.5", "train.epochs=6")
    assert train(config)["top1"] > 70


def test_a_run_is_not_taken_up_with_other_images(quick, tmp_path):
    """Same name of a folder, other images in it: neither resumed nor answered from."""
    folders = [_image_folder(tmp_path / place / "images", place) for place in ("a", "b")]
    words = ("data=imagefolder", "data.resolution=32", "data.batch_size=4", "train.epochs=1")
    first, second = (quick(*words, f"data.root={folder}", "run.workers=0") for folder in folders)
    assert run_name(first) == run_name(second)
    train(first)
    message = "classes, counts or names of images differ from those that .* was made with, of .*/a/"
    with pytest.raises(InputError, match=message):
        train(second)
    (tmp_path / "runs" / run_name(first) / "results.json").unlink()
    with pytest.raises(InputError, match=message):
        train(second)
    assert train(first)["epochs"] == 1


def test_a_run_is_not_taken_up_with_other_files_of_the_same_classes(quick, tmp_path):
    """Two folds: the same classes and counts, other names; and one file renamed in place."""
    folders = []
    for fold in ("a", "b"):
        root = _image_folder(tmp_path / fold / "images", "y")
        for path in [*root.rglob("*.png")]:
            path.rename(path.with_name(f"{fold}{path.name}"))
        folders.append(root)
    words = ("data=imagefolder", "data.resolution=32", "data.batch_size=4", "train.epochs=1")
    first, second = (quick(*words, f"data.root={each}", "run.workers=0") for each in folders)
    train(first)
    folder = tmp_path / "runs" / run_name(first)
    message = f"names of images differ .* was made with, of {folders[0]}; choose another run.root"
    with pytest.raises(InputError, match=message):
        train(second)
    path = next(folders[0].rglob("val/x/*.png"))
    path.rename(path.with_name("z.png"))
    with pytest.raises(InputError, match=message):
        train(first)
    # what was made before names were kept goes by classes and counts
    results = json.loads((folder / "results.json").read_text())
    del results["images"]["names_sha256"]
    (folder / "results.json").write_text(json.dumps(results))
    assert train(first)["epochs"] == 1


def test_results_of_images_that_are_gone_are_shown_with_a_line(quick, tmp_path, capsys):
    root = _image_folder(tmp_path / "images", "y")
    words = ("data=imagefolder", "data.resolution=32", "data.batch_size=4", "train.epochs=1")
    config = quick(*words, f"data.root={root}", "run.workers=0")
    results = train(config)
    shutil.rmtree(root)
    assert train(config) == results
    assert f"{root} was not looked at: the images may have changed" in capsys.readouterr().out


def test_a_precision_that_was_not_used_is_said(finished, capsys):
    config, results, _ = finished
    asked = replace(config, run=replace(config.run, precision="bfloat16"))
    assert train(asked) == results
    assert "it was computed in float32; run.root=... computes it anew" in capsys.readouterr().out


def _image_folder(root, kind):
    for split, label in itertools.product(("train", "val"), ("x", kind)):
        for index in range(3):
            path = root / split / label / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((40, 40), 50 + index).save(path)
    return root


@pytest.mark.parametrize("content", ["", "{", "{}", "null"])
def test_a_damaged_result_is_named(finished, content):
    config, _, folder = finished
    path = folder / "results.json"
    whole = path.read_text()
    path.write_text(content)
    try:
        with pytest.raises(InputError, match="results.json is damaged"):
            train(config)
    finally:
        path.write_text(whole)


def test_results_without_their_configuration_are_not_shown(quick, tmp_path):
    """Nothing says which configuration they belong to; once deleted they are made anew."""
    config = quick("data=fake", "data.resolution=32", "data.args.num_images=32", "train.epochs=1")
    results = train(config)
    folder = tmp_path / "runs" / results["name"]
    (folder / "config.yaml").unlink()
    with pytest.raises(InputError, match="is missing or damaged; delete results.json and repeat"):
        train(config)
    (folder / "results.json").unlink()
    assert train(config)["top1"] == results["top1"]


def test_a_changed_default_never_returns_old_figures(quick, tmp_path):
    """The name is the same, the stored configuration is not."""
    config = quick("data=fake", "data.resolution=32", "data.args.num_images=32", "train.epochs=1")
    folder = tmp_path / "runs" / train(config)["name"]
    stored = folder / "config.yaml"
    stored.write_text(stored.read_text().replace("min_crop_area: 0.08", "min_crop_area: 0.2"))
    with pytest.raises(InputError, match=r"data.min_crop_area was 0.2, is now 0.08; choose"):
        train(config)


def test_a_diverged_run_is_no_result(quick, tmp_path):
    config = quick("optimizer.lr=1e20", "data=fake", "data.resolution=32", "train.epochs=1")
    with pytest.raises(NonFiniteLossError):
        train(config)
    folder = tmp_path / "runs" / run_name(config)
    assert not (folder / "results.json").exists()
    assert "NonFiniteLossError" in (folder / "error.txt").read_text()


def test_a_root_that_cannot_hold_runs_is_refused(quick, tmp_path):
    (tmp_path / "file").write_text("")
    words = ("data=fake", "data.resolution=32", f"run.root={tmp_path}/file")
    with pytest.raises(InputError, match="run.root=.*file: cannot hold the run's folder"):
        train(quick(*words))


def test_bad_input_leaves_nothing_behind(quick, tmp_path):
    for words in (("data=imagefolder", "data.root=nowhere"), ("model.num_classes=3",)):
        with pytest.raises(InputError):
            train(quick(*words))
    assert not (tmp_path / "runs").exists()


def test_more_classes_than_the_data_has_are_allowed(quick):
    config = quick("model.num_classes=12", "train.epochs=1", "data=fake", "data.resolution=32")
    results = train(config)
    assert results["num_classes"] == 12
    assert asdict(config)["model"]["num_classes"] == 12


def _save(net, path):
    torch.save(net.state_dict(), path)
    return path


def test_a_run_starts_from_weights_and_keeps_their_variant(quick, tmp_path, capsys):
    """d-li14's squeeze-excite comes before the activation; a run from it must not forget."""
    source = randomize(DLi14V3("small"))
    path = _save(source, tmp_path / "mobilenetv3-small.pth")
    words = ("model.width_mult=1", f"weights={path}", "data=fake", "data.resolution=32")
    config = quick(*words, "train.epochs=1", "optimizer.lr=0.001")
    started = build_state(config)
    assert torch.equal(started.model.hidden.weight, source.classifier[0].weight)
    assert started.notes[0].startswith(f"starts from {path} (d-li14 V3): BN eps 1e-05, squeeze-")
    assert started.notes[1] == "new classifier: 1000 classes replaced by 10"
    results = train(config)
    assert "new classifier: 1000 classes replaced by 10" in capsys.readouterr().out
    best = tmp_path / "runs" / results["name"] / "checkpoints" / "best.pt"
    state = load_checkpoint(best)
    assert state["dialect"]["se"] == "before_act_if_expanded"
    cpu = EvalRunConfig(device="cpu", wandb="disabled", root=config.run.root)
    logged = _rows(best.parents[1])[0]["val/loss"]
    assert evaluate(EvalConfig(checkpoint=str(best), run=cpu))["loss"] == logged
    # as weights, too, and the variant is no formality
    model = load_weights(build_model("v3_small", num_classes=10), best)
    assert model.variant.se == "before_act_if_expanded"
    # a run that is taken up again does not need the file it began from
    (best.parent.parent / "results.json").unlink()
    assert build_state(config, checkpoint=state).notes == ()


def test_rmsprop_starts_from_the_old_v1_repository_s_sgd_weights(quick, tmp_path):
    state = {f"module.{key}": value for key, value in randomize(MarvisV1()).state_dict().items()}
    torch.save({"epoch": 90, "arch": "mobilenet", "state_dict": state}, tmp_path / "sgd.pth.tar")
    words = ("model=v1", "model.width_mult=1", "optimizer=rmsprop")
    config = quick(*words, f"weights={tmp_path}/sgd.pth.tar", "data=fake", "data.resolution=32")
    started = build_state(config)
    assert torch.equal(started.model.stem.conv.weight, state["module.model.0.0.weight"])
    assert isinstance(started.model.stem.act, torch.nn.ReLU)
    own_eps = quick(*words, f"weights={tmp_path}/sgd.pth.tar", "data=fake", "model.bn_eps=0.5")
    assert build_state(own_eps).model.stem.bn.eps == 0.5
    own_act = quick(*words, f"weights={tmp_path}/sgd.pth.tar", "model.args.activation=relu6")
    assert isinstance(build_state(own_act).model.stem.act, torch.nn.ReLU6)


def test_a_run_s_checkpoint_is_exported_to_torchvision_and_timm(quick, tmp_path):
    words = ("model=v2", "model.width_mult=1", "model.stem_stride=2", "data=fake")
    small = ("data.resolution=64", "data.args.num_images=32", "data.batch_size=16")
    results = train(quick(*words, *small, "train.epochs=1"))
    ours = model_from_checkpoint(tmp_path / "runs" / results["name"] / "checkpoints" / "best.pt")
    images = torch.randn(2, 3, 64, 64)
    for layout, theirs in (
        ("torchvision", torchvision.models.mobilenet_v2(num_classes=10)),
        ("timm", timm.create_model("mobilenetv2_100", num_classes=10)),
    ):
        theirs.load_state_dict(export_weights(ours, layout), strict=True)
        with torch.no_grad():
            expected = ours(images)
            torch.testing.assert_close(
                theirs.eval()(images), expected, rtol=0, atol=1e-5 * expected.std().item()
            )


def test_a_run_shorter_than_its_trace_writes_what_there_is(tiny, quick, tmp_path, capsys):
    for seed in (0, 1):
        few = ("data=fake", "data.resolution=32", "data.args.num_images=64", "data.batch_size=16")
        config = quick(*few, "run.profile=100", "model.name=tiny", f"train.seed={seed}")
        train(config)
        assert "updates traced" in capsys.readouterr().out
        assert "aten::" in (tmp_path / "runs" / run_name(config) / "trace.txt").read_text()


def test_epochs_between_evaluations_have_no_scores(tiny, quick, tmp_path, capsys):
    config = quick("model.name=tiny", "train.epochs=5", "train.eval_every=2")
    results = train(config)
    rows = _rows(tmp_path / "runs" / run_name(config))
    assert [row["epoch"] for row in rows if "val/top1" in row] == [2, 4, 5]
    assert all("train/loss" in row for row in rows)
    assert results["best_epoch"] in (2, 4, 5)
    assert results["last_top1"] == rows[-1]["val/top1"]
    assert capsys.readouterr().out.count("not evaluated") == 2


def test_a_trace_shows_where_the_time_goes(tiny, quick, tmp_path, capfd):
    # the same run: a trace changes nothing that is learned
    assert run_name(quick("run.profile=2")) == run_name(quick())
    config = quick("data=fake", "data.resolution=32", "run.profile=2", "model.name=tiny")
    train(config)
    out, err = capfd.readouterr()
    assert "2 updates traced" in out
    assert "USDT" not in err
    folder = tmp_path / "runs" / run_name(config)
    with gzip.open(folder / "trace.json.gz") as file:
        assert "aten::convolution" in {event["name"] for event in json.load(file)["traceEvents"]}
    assert "aten::convolution" in (folder / "trace.txt").read_text()
