"""Whatever the terminal cannot do, the results are there and the exit code is right."""

import pytest
from image_folders import write_classes
from programs import run

TINY = (
    "model.name=tiny", "run.imports=[tiny_net]", "train.epochs=2", "run.device=cpu",
    "train.precise_bn_batches=0", "data=imagefolder", "data.resolution=32", "data.batch_size=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes whose names few encodings have; a finished run on them."""
    folder = tmp_path_factory.mktemp("names")
    write_classes(folder / "data", {"train": 4, "val": 3})
    for split in ("train", "val"):
        (folder / "data" / split / "cat").rename(folder / "data" / split / "猫")
    words = (
        "data=imagefolder",
        f"data.root={folder}/data",
        "data.resolution=32",
        "data.batch_size=4",
    )
    done = run(
        folder,
        "train.py",
        *TINY,
        *words,
        "run.wandb=disabled",
        "run.log_every_minutes=0",
        "run.workers=0",
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "ascii", "COLUMNS": "60"},
        {"NO_COLOR": "1", "TERM": "dumb"},
        # no home, or one that cannot be written
        {"HOME": "/dev/null/nobody", "XDG_CACHE_HOME": "/dev/null/cache"},
    ],
)
def test_an_evaluation_on_any_terminal(photos, environment, tmp_path):
    folder, _ = photos
    (best,) = folder.glob("runs/*/checkpoints/best.pt")
    words = (f"checkpoint={best}", "run.imports=[tiny_net]", "run.workers=0", "run.wandb=offline")
    done = run(folder, "eval.py", *words, **environment)
    assert done.returncode == 0, done.stderr
    assert "results.json, per_class.csv, predictions.csv, confusion.csv in" in done.stdout
    assert "wandb:" not in done.stdout + done.stderr
    assert "\x1b[" not in done.stdout
    (table,) = folder.glob("runs/*/eval/*/per_class.csv")
    assert "猫" in table.read_text(encoding="utf-8")
    if "COLUMNS" in environment:
        figures = [line for line in done.stdout.splitlines() if "top-1 %" in line]
        assert figures
        assert all(len(line) <= 60 for line in figures)


def test_a_log_file_has_lines_within_an_epoch(photos):
    _, out = photos
    lines = [line for line in out.splitlines() if line.startswith("epoch 1/2, update 1 of 2: loss")]
    assert len(lines) == 1
    for words in (" images/s, ", " % waiting for data, ", " left of the epoch, ", " of the run"):
        assert words in lines[0]
