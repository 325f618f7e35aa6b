"""What a run leaves to look at: curves, its first batch, its best epoch's answers."""

import csv
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hard_run import metrics
from PIL import Image

from mobilenet_exp import compose, evaluate, train
from mobilenet_exp.config.identity import run_name
from mobilenet_exp.core.errors import RunError
from mobilenet_exp.core.files import write_file
from mobilenet_exp.evaluation import showing
from mobilenet_exp.evaluation.mistakes import MOST, draw_sheet, worst_mistakes
from mobilenet_exp.papers.comparison import compare
from mobilenet_exp.tracking.pictures import SHARE, Throttle, draw_curves
from mobilenet_exp.training import reporting
from mobilenet_exp.training.train import build_state


@pytest.fixture(scope="module")
def drawn(quick_in, tmp_path_factory):
    config = quick_in(tmp_path_factory.mktemp("drawn"), "run.pictures=true")
    results = train(config)
    return config, results, Path(config.run.root) / run_name(config)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_answers_of_the_best_epoch_give_its_accuracy(drawn):
    _, results, folder = drawn
    rows = _rows(folder / "best" / "predictions.csv")
    assert len(rows) == 360
    right = sum(row["label"] == row["answer1"] for row in rows)
    assert 100 * right / len(rows) == pytest.approx(results["top1"])
    classes = _rows(folder / "best" / "per_class.csv")
    assert sum(float(row["top1"]) * int(row["num_images"]) for row in classes) / len(
        rows
    ) == pytest.approx(results["top1"])
    square = list(csv.reader((folder / "best" / "confusion.csv").open()))
    counts = np.array([[int(cell) for cell in row[1:]] for row in square[1:]])
    assert counts.trace() == right
    assert counts.sum() == len(rows)


def test_blocks_add_up(drawn):
    _, results, folder = drawn
    for name in ("blocks.csv", "layers.csv"):
        rows = _rows(folder / name)
        for key in ("madds", "params"):
            assert sum(int(row[key]) for row in rows) == results[key]
    assert {"Conv2d", "BatchNorm2d", "Linear"} <= {row["kind"] for row in rows}


def test_pictures_are_there_and_no_part_of_one(drawn):
    _, _, folder = drawn
    sizes = {}
    for name in ("curves.png", "first_batch.png", "best/errors.png"):
        with Image.open(folder / name) as image:
            image.load()
            sizes[name] = image.size
    # eight images of 160 px in a row, two pixels between them
    assert sizes["first_batch.png"] == (8 * 162 + 2, 4 * 162 + 2)
    assert not list(folder.rglob("*.tmp"))


def test_the_first_batch_is_what_the_network_gets(quick, tmp_path):
    # grey is the input's zero: pixels shifted by their mean are grey on average
    pictures = {}
    for mean in ("0.36", "0.9"):
        mean_words = (f"data.mean=[{mean},{mean},{mean}]", f"run.root={tmp_path}/{mean}")
        config = quick("run.pictures=true", "train.epochs=1", *mean_words)
        train(config)
        with Image.open(Path(config.run.root) / run_name(config) / "first_batch.png") as image:
            pictures[mean] = np.asarray(image).mean()
    assert pictures["0.9"] < pictures["0.36"] - 20


def test_the_first_batch_is_drawn_before_its_memory_is_used_again(quick):
    state = build_state(quick("run.pictures=true", "data=fake", "data.resolution=32"))
    folder = Path(state.config.run.root)
    memory = torch.empty(4, 3, 8, 8)

    def batches():
        for value in (0.0, 2.5):
            yield memory.fill_(value), None

    with reporting.reporting(state, folder) as reporter:
        for _ in reporter.show(batches(), "two", 2):
            with Image.open(folder / "first_batch.png") as image:
                # grey is zero, white 2.5; the border is white
                assert abs(np.asarray(image)[80, 80] - 127.5).max() <= 1


def test_a_picture_that_cannot_be_drawn_costs_no_run(quick, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ValueError("no font\nand more")

    monkeypatch.setattr(reporting, "draw_curves", fail)
    monkeypatch.setattr(showing, "draw_sheet", fail)
    config = quick("run.pictures=true", "train.epochs=1", f"run.root={tmp_path}")
    results = train(config)
    folder = tmp_path / results["name"]
    assert (folder / "results.json").exists()
    assert (folder / "best" / "per_class.csv").exists()
    printed = capsys.readouterr().out
    for name in ("curves.png", "best/errors.png"):
        assert f"{name}: could not be made (no font); the rest goes on" in printed
        assert not (folder / name).exists()
    scored = evaluate(
        compose(f"checkpoint={folder}/checkpoints/best.pt", "run.wandb=disabled", program="eval")
    )
    assert scored["top1"] == results["top1"]
    assert "errors.png: could not be made" in capsys.readouterr().out


def test_metrics_know_the_gradient_and_sections(drawn):
    _, _, folder = drawn
    rows = metrics(folder / "metrics.jsonl")
    assert all(row["train/grad_norm"] > 0 for row in rows)
    sections = {key.partition("/")[0] for key in rows[0]}
    assert sections == {"epoch", "train", "val", "speed", "system"}


def test_worst_mistakes_come_first_and_missing_images_are_passed_over():
    images = [(torch.full((3, 8, 400), number / 10), 0) for number in range(3)]
    text = "image,label,answer1,percent1,loss\n"
    text += "image 0,cat,cat,99,9.5\nimage 1,cat,dog,60,1.5\nimage 2,cat,dog,80,3.5\n"
    text += "image 7,cat,dog,80,8.5\n"
    found = worst_mistakes(text, images)
    assert [(each.image, each.loss) for each in found] == [("image 2", 3.5), ("image 1", 1.5)]
    assert found[0].picture.shape == (3, 160, 3)


def test_a_sheet_of_odd_names(tmp_path):
    images = [(torch.rand(3, 16, 24), 0)] * (MOST + 5)
    names = "$x$_{", "<b>", "a" * 80, "\\udce9", "日本"
    text = "image,label,answer1,percent1,loss\n"
    for number in range(len(images)):
        name = names[number % len(names)]
        text += f'image {number},"{name}","{name} not",50,{number}.5\n'
    found = worst_mistakes(text, images)
    assert len(found) == MOST
    with warnings.catch_warnings():
        # of characters that no font here has
        warnings.simplefilter("error")
        draw_sheet(found, tmp_path / "errors.png", "$ odd")
    draw_sheet(found[:1], tmp_path / "one.png", "one")
    with Image.open(tmp_path / "errors.png") as many, Image.open(tmp_path / "one.png") as one:
        assert many.width == one.width
        assert many.height > 3 * one.height


def test_curves_show_the_paper_s_line_where_there_is_one(tmp_path):
    rows = [{"epoch": epoch, "train/loss": 1.0, "val/top1": 50.0} for epoch in (1, 2)]
    draw_curves(rows, tmp_path / "without.png", "run", None)
    draw_curves(rows, tmp_path / "with.png", "run", ("paper, 70 %", 70.0))
    draw_curves([], tmp_path / "none.png", "run", None)
    pictures = [Image.open(tmp_path / f"{name}.png").convert("RGB") for name in ("without", "with")]
    red = [(np.asarray(each).astype(int) @ (1, -1, 0) > 80).sum() for each in pictures]
    assert red[0] == 0
    assert red[1] > 50


def test_drawing_takes_its_share_of_the_time_only(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    drawn = []

    def draw():
        clock[0] += 0.1
        drawn.append(clock[0])

    best_effort = Throttle(draw)
    best_effort.do()
    assert not drawn
    for _ in range(200_000):
        clock[0] += 0.01
        best_effort.do()
    spent = 0.1 * len(drawn)
    assert 0.5 * SHARE < spent / (clock[0] - 1000) <= SHARE


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path):
    def full(path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "curves.png").write_bytes(b"whole")
    with pytest.raises(RunError, match=r"curves.png could not be written: No space left"):
        write_file(tmp_path / "curves.png", full)
    assert (tmp_path / "curves.png").read_bytes() == b"whole"


def test_the_paper_s_table_adds_up(compose_config):
    config = compose_config("model=kuanwang_v3_small", "data=digits", "model.stem_stride=2")
    found = compare(config.model, config.data, 10)
    ours = found.published._replace(madds=1_000_000, params=500_000)
    columns, rows = found.table(ours, 90.0, 99.0)
    cells = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    source = found.row.source
    madds = cells["madds_m"]
    assert madds["this run"] == 1.0
    assert madds["gap to paper"] is None
    counted = madds[f"{source}'s net, counted here"]
    assert madds["gap of that count"] == pytest.approx(counted - madds[f"{source} prints"])
    summary = found.summary(90.0, 99.0)
    assert summary["delta/madds_m"] == pytest.approx(
        summary["published/madds_m"] - summary["paper/madds_m"]
    )
    assert cells["top1"]["gap to paper"] is None
    own = compose_config("model=v3_small", "data=imagenet")
    found = compare(own.model, own.data, 1000)
    columns, rows = found.table(found.published, 66.4, 87.0)
    top1 = dict(zip(columns, rows[0], strict=True))
    assert top1["gap to paper"] == pytest.approx(66.4 - found.row.top1)
    assert "torchvision:IMAGENET1K_V1 prints" in columns
