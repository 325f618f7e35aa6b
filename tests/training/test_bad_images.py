"""A training with images that cannot be read: it ends in one line, or leaves them out."""

import json

import pytest
from hard_run import assert_same, folder_of, state
from image_folders import write_classes
from programs import run

from mobilenet_exp.core.errors import RunError
from mobilenet_exp.training.train import train

WORDS = (
    "model.name=tiny", "run.imports=[tiny_net]", "data=imagefolder", "data.resolution=32",
    "data.batch_size=4", "train.epochs=2", "train.precise_bn_batches=0", "run.device=cpu",
    "run.wandb=disabled", "run.workers=1", "run.save_every_minutes=0",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Two classes of 8 images to train on and 4 to evaluate; one of each split is damaged."""
    write_classes(tmp_path / "data", {"train": 8, "val": 4})
    for name in ("train/cat/3.jpg", "val/dog/1.jpg"):
        path = tmp_path / "data" / name
        path.write_bytes(path.read_bytes()[:300])
    return tmp_path


def test_skipped_images_are_the_same_on_all_ranks_and_after_a_resume(folder):
    skip = (*WORDS, f"data.root={folder}/data", "data.on_bad_image=skip")
    found = {}
    for name, words in {"one": (), "two": ("run.devices=2", "run.workers=0")}.items():
        (folder / name).mkdir()
        done = run(folder / name, "train.py", *skip, *words, f"run.root={folder / name}/runs")
        assert done.returncode == 0, done.stderr
        assert "2 images left out; so far: cat/3.jpg (cannot be decoded: Trunc" in done.stdout
        found[name] = json.loads((folder_of(folder / name) / "results.json").read_text())
    assert list(found["one"]["left_out"]) == ["cat/3.jpg", "dog/1.jpg"]
    assert found["one"]["left_out"] == found["two"]["left_out"]
    # stopped by the image, then gone on without it: the promise of the line
    (folder / "three").mkdir()
    fail = (*WORDS, f"data.root={folder}/data", f"run.root={folder}/three/runs")
    stopped = run(folder / "three", "train.py", *fail)
    assert stopped.returncode == 1
    (line,) = stopped.stderr.splitlines()
    assert "train/cat/3.jpg cannot be decoded" in line
    assert "to resume, repair the file, or repeat the command with data.on_bad_image=skip" in line
    done = run(folder / "three", "train.py", *fail, "data.on_bad_image=skip")
    assert done.returncode == 0, done.stderr
    assert_same(state(folder_of(folder / "three")), state(folder_of(folder / "one")))


def test_a_validation_image_that_cannot_be_read_is_one_line(folder, tiny, compose_config):
    (folder / "data/train/cat/3.jpg").unlink()
    words = (*WORDS, f"data.root={folder}/data", f"run.root={folder}/runs", "run.workers=0")
    with pytest.raises(RunError, match=r"validation image dog/1.jpg cannot be .*on_bad_image=skip"):
        train(compose_config(*words))
    for path in (folder / "data" / "val").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(RunError, match="no validation image can be read"):
        train(compose_config(*words, "data.on_bad_image=skip"))
