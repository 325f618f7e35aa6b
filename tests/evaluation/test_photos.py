"""Photos are classified with the names of the classes."""

import csv
import re

import pytest
import torch
import torchvision
from image_folders import HOPPER
from layout_nets import KuanWangV3
from PIL import Image

from mobilenet_exp import build_model, evaluate
from mobilenet_exp.core.errors import RunError
from mobilenet_exp.datasets import imagenet


def test_photos_are_named_with_imagenet_s_names(
    compose_config, photos, kuan_wang_weights, capsys, tmp_path
):
    words = ("model=kuanwang_v3_small", f"weights={kuan_wang_weights}", "run.device=cpu")
    words += (f"run.root={tmp_path}",)
    config = compose_config(*words, f"image={photos}", program="eval")
    assert evaluate(config) == {"num_left_out": 3, "num_missing": 0}
    printed = capsys.readouterr().out
    assert "LEFT OUT" in printed
    assert "16-bit, greyscale" in " ".join(printed.split())
    # one table, and one file with all five answers
    assert printed.count("best") == 1
    (file,) = tmp_path.glob("photos-*/predictions.csv")
    rows = list(csv.DictReader(file.open()))
    assert len(rows) == 3 + int(re.search(r"(\d+) photos", printed)[1])
    read = [row for row in rows if row["answer1"]]
    assert all(float(row["percent1"]) >= float(row["percent5"]) > 0 for row in read)
    assert [row["note"] for row in rows if not row["answer1"]] != ["", "", ""]
    # the answer is the layout's own module's
    net = KuanWangV3("small").eval()
    net.load_state_dict(torch.load(kuan_wang_weights))
    transform = torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.transforms()
    with torch.no_grad():
        best = net(transform(Image.open(HOPPER).convert("RGB"))[None]).softmax(1)[0].max(0)
    evaluate(compose_config(*words, f"image={HOPPER}", program="eval"))
    printed = " ".join(capsys.readouterr().out.split())
    name = imagenet.class_names()[best.indices]
    assert f"{name} {100 * best.values:.2f}" in printed


def test_answers_that_are_not_finite_are_no_answers(compose_config, tmp_path):
    """A variance below zero in the file; half precision that overflows does the same."""
    state = build_model("v2", width_mult=0.35, num_classes=10).state_dict()
    next(value for key, value in state.items() if key.endswith("running_var"))[0] = -1.0
    torch.save(state, tmp_path / "w.pt")
    words = ("model=v2", "model.width_mult=0.35", f"weights={tmp_path}/w.pt", "run.device=cpu")
    config = compose_config(*words, f"image={HOPPER}", f"run.root={tmp_path}", program="eval")
    with pytest.raises(RunError, match="grace_hopper.jpg are not finite numbers: its weights are"):
        evaluate(config)
