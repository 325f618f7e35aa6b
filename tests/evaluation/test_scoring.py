"""Every image once, whoever shares the work; odd images are named; figures are exact."""

import csv
import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import torchvision
from image_folders import CHINA, NUM_FLAT
from layout_nets import KuanWangV3
from PIL import Image
from programs import ROOT

from mobilenet_exp import evaluate, train
from mobilenet_exp.config.schema import EvalConfig, EvalModelConfig, EvalRunConfig
from mobilenet_exp.core.errors import InputError, RunError
from mobilenet_exp.datasets import imagenet
from mobilenet_exp.evaluation import job


@pytest.fixture
def eval_config(compose_config, flat, kuan_wang_weights, tmp_path):
    def composed(*overrides: str):
        return compose_config(
            "model=kuanwang_v3_small",
            f"weights={kuan_wang_weights}",
            "data=imagenet",
            f"data.root={flat}",
            f"data.labels={flat}/val.txt",
            "data.batch_size=4",
            "run.device=cpu",
            "run.workers=0",
            "run.wandb=disabled",
            f"run.root={tmp_path}/runs",
            *overrides,
            program="eval",
        )

    return composed


def test_a_flat_validation_set_is_scored_and_its_odd_images_named(eval_config, tmp_path, capsys):
    results = evaluate(eval_config())
    assert results["num_images"] == NUM_FLAT - 3
    assert results["left_out"] == {
        "ILSVRC2012_val_00000003.JPEG": "cannot be decoded: the file is empty",
        "ILSVRC2012_val_00000005.JPEG": "no label in val.txt",
        "ILSVRC2012_val_00000007.JPEG": "label 1000 is not one of the 1000 classes",
    }
    assert results["converted"] == {"ILSVRC2012_val_00000004.JPEG": "greyscale"}
    assert (results["num_left_out"], results["num_missing"]) == (3, 1)
    assert results["paper"] is None
    assert results["paper_reason"].startswith("9 images scored")
    assert results["reference"]["row"]["top1"] == 67.4
    # by the source's own way of counting: 62.586 counted, 63 printed
    assert results["reference"]["delta"]["madds_m"] == pytest.approx(62.586082 - 63)
    folder = tmp_path / "runs" / results["name"]
    assert json.loads((folder / "results.json").read_text())["loss"] == results["loss"]
    assert "missing,ILSVRC2012_val_00000099" in (folder / "odd_images.csv").read_text()
    rows = list(csv.DictReader((folder / "predictions.csv").open()))
    assert len(rows) == NUM_FLAT - 3
    assert rows[0]["image"] == "ILSVRC2012_val_00000001.JPEG"
    is_hit = [row["label"] == row["answer1"] for row in rows]
    assert 100 * sum(is_hit) / len(rows) == pytest.approx(results["top1"])
    losses = [float(row["loss"]) for row in rows]
    assert sum(losses) / len(rows) == pytest.approx(results["loss"], abs=1e-3)
    percents = [float(rows[0][f"percent{n}"]) for n in range(1, 6)]
    assert percents == sorted(percents, reverse=True)
    assert 0 < sum(percents) <= 100
    assert len((folder / "confusion.csv").read_text().splitlines()) == 1001
    printed = capsys.readouterr().out
    assert "3 images LEFT OUT: ILSVRC2012_val_00000003.JPEG (cannot be decoded" in printed
    assert "1 image converted and scored" in printed
    assert "layout: kuan-wang V3" in printed
    assert "224 px, crop_pct 0.875, bilinear, mean [0.485, 0.456, 0.406]" in printed


def test_the_figures_are_those_of_a_plain_loop(eval_config, flat, kuan_wang_weights):
    """Scored one by one by the layout's own module, and counted by hand."""
    results = evaluate(eval_config())
    net = KuanWangV3("small").eval()
    net.load_state_dict(torch.load(kuan_wang_weights))
    transform = torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.transforms()
    given = dict(line.split() for line in (flat / "val.txt").read_text().splitlines())
    losses, hits = [], []
    for path in sorted((flat / "val").iterdir()):
        label = int(given.get(path.name, 1000))
        if label > 999 or path.stat().st_size == 0:
            continue
        with torch.no_grad():
            logits = net(transform(Image.open(path).convert("RGB"))[None])
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor([label])).item())
        hits.append(logits.argmax().item() == label)
    assert results["num_images"] == len(losses)
    assert results["loss"] == pytest.approx(np.mean(losses), abs=1e-4)
    assert results["top1"] == pytest.approx(100 * np.mean(hits))


def test_fail_stops_at_the_first_bad_image_and_writes_nothing(eval_config, tmp_path):
    with pytest.raises(InputError, match=r"00000003.JPEG cannot be decoded: the file is empty; "):
        evaluate(eval_config("data.on_bad_image=fail"))
    assert not (tmp_path / "runs").exists()


def test_keys_on_the_command_line_win_over_the_source_s(eval_config):
    results = evaluate(eval_config("data.resolution=64", "data.interpolation=bicubic"))
    assert results["preprocessing"]["resolution"] == 64
    assert results["preprocessing"]["interpolation"] == "bicubic"
    assert results["preprocessing"]["crop_pct"] == 0.875


def test_real_labels_are_timm_s(eval_config):
    allowed = timm.data.RealLabelsImagenet([""] * 50_000).real_labels
    results = evaluate(eval_config("data.real_labels=true"))
    scored = [n for n in range(1, 13) if n not in (3, 5, 7)]
    expected = sum(bool(allowed[f"ILSVRC2012_val_{n:08d}.JPEG"]) for n in scored)
    assert results["real"]["num_images"] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n2\n3", "numbers without names are in the devkit's order"),
        ("n01440764\nn01443537", "has 2 lines without names, for 12 files"),
        ("a.JPEG 1\nb.JPEG 2", "has no label for any file"),
        (None, "cannot be read"),
    ],
)
def test_labels_that_say_nothing_of_these_files_are_refused(eval_config, tmp_path, text, message):
    if text is not None:
        (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        evaluate(eval_config(f"data.labels={tmp_path}/labels.txt"))


def test_a_flat_folder_needs_labels_and_class_folders_their_ids(eval_config, flat, tmp_path):
    with pytest.raises(InputError, match=r"one flat folder, .*val, need data.labels=FILE"):
        evaluate(eval_config("data.labels=null"))
    for name in imagenet.class_ids():
        folder = tmp_path / "tree" / name
        folder.mkdir(parents=True)
        (folder / "x.JPEG").symlink_to(CHINA)
    tree = (f"data.root={tmp_path}/tree", "data.labels=null", "data.resolution=32")
    results = evaluate(eval_config(*tree, "data.batch_size=256"))
    assert results["num_images"] == 1000
    assert results["per_class"][0]["class"] == "n01440764 tench"
    (tmp_path / "tree" / "n01440764").rename(tmp_path / "tree" / "tench")
    with pytest.raises(InputError, match="has 1000, and tench is not one of them"):
        evaluate(eval_config(*tree))


def test_two_processes_score_every_image_once_and_alike(
    eval_config, tmp_path, flat, kuan_wang_weights
):
    """The real launcher, the real program; an odd share, and odd images in both."""
    alone = evaluate(eval_config())
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"),
            *(str(ROOT / "eval.py"), "model=kuanwang_v3_small", f"weights={kuan_wang_weights}"),
            *("data=imagenet", f"data.root={flat}", f"data.labels={flat}/val.txt"),
            *("data.batch_size=4", "run.device=cpu", "run.workers=0", "run.wandb=disabled"),
            f"run.root={tmp_path}/two",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    # torchrun says 1 for any failure; rank 0 left with 3, images left out
    assert "exitcode  : 3" in done.stderr
    assert done.stdout.count("layout: kuan-wang V3") == 1
    shared = json.loads((tmp_path / "two" / alone["name"] / "results.json").read_text())
    exact = ("top1", "top5", "num_images", "left_out", "converted", "per_class")
    assert {key: shared[key] for key in exact} == {key: alone[key] for key in exact}
    # batches are others, so float32 rounds otherwise
    assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert shared["ece"] == pytest.approx(alone["ece"], abs=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give exactly one of checkpoint=FILE and weights=FILE; neither was given"),
        (("checkpoint=a", "weights=b"), "both were given"),
        (("weights=b",), "model=null: weights= needs model="),
        (("weights={weights}", "model=kuanwang_v3_small"), "data=null: must be given, e.g. data="),
        (
            ("weights={weights}", "model=kuanwang_v3_small", "image=nowhere"),
            "image=nowhere: no such",
        ),
        (
            ("weights={weights}", "model=kuanwang_v3_small", "data=digits"),
            "data=digits: has 10 classes, the weights have 1000",
        ),
        (
            ("weights={weights}", "model=kuanwang_v3_small", "data=digits", "data.labels=x"),
            "is only for data=imagenet",
        ),
    ],
)
def test_what_an_evaluation_needs_is_said(compose_config, kuan_wang_weights, words, message):
    words = tuple(word.format(weights=kuan_wang_weights) for word in words)
    with pytest.raises(InputError) as caught:
        evaluate(compose_config(*words, "run.device=cpu", program="eval"))
    assert message in str(caught.value)


def test_a_folder_of_bad_images_is_one_line(eval_config, flat, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.JPEG").write_text("no image")
    (tmp_path / "bad.txt").write_text("a.JPEG 3")
    words = (f"data.root={tmp_path}/bad", f"data.labels={tmp_path}/bad.txt")
    with pytest.raises(InputError, match=r"could be scored; the first: a.JPEG cannot be decoded"):
        evaluate(eval_config(*words))


def test_evaluation_repeats_the_run_s_figures(finished):
    config, results, folder = finished
    cpu = EvalRunConfig(device="cpu", wandb="disabled", root=config.run.root)
    best = EvalConfig(checkpoint=str(folder / "checkpoints" / "best.pt"), run=cpu)
    scores = evaluate(best)
    assert (scores["top1"], scores["top5"]) == (results["top1"], results["top5"])
    assert scores["num_images"] == 360


def _image_folder(root, kind):
    for split, label in itertools.product(("train", "val"), ("x", kind)):
        for index in range(3):
            path = root / split / label / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((40, 40), 50 + index).save(path)
    return root


def test_evaluation_needs_no_training_images(quick, tmp_path):
    root = _image_folder(tmp_path / "images", "y")
    words = ("data=imagefolder", "data.resolution=32", "data.batch_size=4", "train.epochs=1")
    config = quick(*words, f"data.root={root}", "run.workers=0")
    results = train(config)
    shutil.rmtree(root / "train")
    best = tmp_path / "runs" / results["name"] / "checkpoints" / "best.pt"
    cpu = EvalRunConfig(device="cpu", workers=0, wandb="disabled", root=str(tmp_path / "runs"))
    assert evaluate(EvalConfig(checkpoint=str(best), run=cpu))["top1"] == results["top1"]


def test_an_evaluation_of_a_checkpoint_lies_in_its_run_s_folder(finished):
    config, results, folder = finished
    cpu = EvalRunConfig(device="cpu", wandb="disabled", root=config.run.root)
    scores = evaluate(EvalConfig(checkpoint=str(folder / "checkpoints" / "last.pt"), run=cpu))
    found = folder / "eval" / scores["name"]
    assert json.loads((found / "results.json").read_text()) == scores
    assert sum(each["num_images"] for each in scores["per_class"]) == 360
    assert scores["top1"] == results["last_top1"]
    # the run's own results stay
    assert json.loads((folder / "results.json").read_text()) == results
    message = "model.width_mult=0.5: is read from the checkpoint"
    with pytest.raises(InputError, match=message):
        evaluate(
            EvalConfig(
                checkpoint=str(folder / "checkpoints" / "last.pt"),
                model=EvalModelConfig(width_mult=0.5),
                run=cpu,
            )
        )


def test_where_results_cannot_go_is_said_before_the_work(finished, tmp_path, monkeypatch):
    _, _, folder = finished
    copy = shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(copy / "eval", ignore_errors=True)
    (copy / "eval").write_text("no folder")
    cpu = EvalRunConfig(device="cpu", wandb="disabled", root=str(tmp_path))
    asked = EvalConfig(checkpoint=str(copy / "checkpoints" / "best.pt"), run=cpu)
    monkeypatch.setattr(job, "score", None)
    with pytest.raises(InputError, match=r"^checkpoint=.*eval/.* cannot be written: Not a direct"):
        evaluate(asked)


def test_scores_that_cannot_be_kept_are_printed(finished, tmp_path, monkeypatch, capsys):
    """A disk that was filled meanwhile."""
    _, results, folder = finished
    copy = shutil.copytree(folder, tmp_path / "run")
    cpu = EvalRunConfig(device="cpu", wandb="disabled", root=str(tmp_path))

    def full(*_: object) -> None:
        raise RunError("results.json could not be written: No space left on device")

    monkeypatch.setattr(job.Tracker, "write", full)
    with pytest.raises(RunError, match="No space left"):
        evaluate(EvalConfig(checkpoint=str(copy / "checkpoints" / "best.pt"), run=cpu))
    printed = capsys.readouterr().out
    assert f"{results['top1']:.2f}" in printed
    assert "not written" in printed
