"""Checkpoints are whole, plain and safe."""

import os
import pickle

import pytest
import torch

from mobilenet_exp import build_model
from mobilenet_exp.core.errors import InputError, RunError
from mobilenet_exp.weights.checkpoint import load_checkpoint, restore_model, save_checkpoint
from mobilenet_exp.weights.load import load_run


def test_a_checkpoint_comes_back_by_weights_only(tmp_path):
    path = tmp_path / "deep" / "last.pt"
    save_checkpoint(path, {"model": {"weight": torch.arange(3.0)}, "epoch": 2})
    state = torch.load(path, weights_only=True)
    assert state["epoch"] == 2
    assert torch.equal(load_checkpoint(path)["model"]["weight"], torch.arange(3.0))
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"model": {}, "epoch": 1})

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(RunError, match="last.pt could not be written: No space left on device"):
        save_checkpoint(path, {"epoch": 2}, previous=tmp_path / "previous.pt")
    assert load_checkpoint(path)["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("has_links", [True, False])
def test_the_best_is_a_second_name_or_a_copy(tmp_path, monkeypatch, has_links):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    for epoch in (1, 2, 3):
        also = (best,) if epoch < 3 else ()
        save_checkpoint(last, {"model": {}, "epoch": epoch}, also=also)
    assert load_checkpoint(best)["epoch"] == 2
    assert load_checkpoint(last)["epoch"] == 3
    assert {file.name for file in tmp_path.iterdir()} == {"last.pt", "best.pt"}


def test_what_a_cut_save_left_behind_is_not_written_into(tmp_path):
    """Killed after the best had its second name and before the last had its own."""
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    save_checkpoint(best, {"model": {}, "epoch": 1})
    os.link(best, tmp_path / "last.tmp")
    save_checkpoint(last, {"model": {}, "epoch": 2})
    assert load_checkpoint(best)["epoch"] == 1


class _Malicious:
    def __reduce__(self):
        return (os.system, ("echo it ran > ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "cannot be read: damaged"),
        (b"half a checkpoint", "cannot be read: damaged"),
        (pickle.dumps(_Malicious()), "refused: it holds more than tensors"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_code_inside_a_torch_file_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "model": _Malicious()}, tmp_path / "bad.pt")
    with pytest.raises(InputError, match="refused: it holds more than tensors"):
        load_checkpoint(tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_cut_short_is_refused(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"model": {"weight": torch.zeros(1000)}})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="cannot be read: damaged, or not a checkpoint"):
        load_checkpoint(path)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="does not fit its own model: .*weight"):
        restore_model(build_model("v1"), {"model": {}}, "some.pt")


def test_another_kind_of_file_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "foreign.pt")
    with pytest.raises(InputError, match="not a checkpoint of train.py, format 1"):
        load_checkpoint(tmp_path / "foreign.pt")


def test_a_configuration_of_another_version_is_one_line(finished, tmp_path):
    _, _, folder = finished
    state = load_checkpoint(folder / "checkpoints" / "best.pt")
    state["config"]["train"]["sharpness"] = 3
    save_checkpoint(tmp_path / "newer.pt", state)
    problem = "newer.pt: holds a configuration of another version: Key 'sharpness' not in"
    with pytest.raises(InputError, match=problem) as caught:
        load_run(str(tmp_path / "newer.pt"))
    assert "\n" not in str(caught.value)
