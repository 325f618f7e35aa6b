"""Photos are classified with the names of the classes."""

import csv
import re

import torch
import torchvision
from image_folders import HOPPER
from layout_nets import KuanWangV3
from PIL import Image

from mobilenet_exp import evaluate
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
