"""The list of a large tree is made once and kept until a folder has changed."""

import os
import time

import numpy as np
import pytest

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.datasets import listing
from mobilenet_exp.datasets.listing import Names, list_tree


@pytest.fixture
def tree(folder, tmp_path, monkeypatch):
    """Class folders that were last changed an hour ago, and a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "MIN_KEPT", 1)
    (folder / "train" / "class0" / "more").mkdir()
    _age(folder / "train")
    return folder / "train"


def _age(tree) -> None:
    hour_ago = time.time() - 3600
    for path in (tree, *tree.rglob("*")):
        os.utime(path, (hour_ago, hour_ago))


def _seen(found) -> tuple:
    return [*found.names], found.labels.tolist(), found.classes, found.others


def test_a_kept_list_is_the_listed_one(tree, monkeypatch, tmp_path):
    (tree / "class1" / "notes.txt").write_text("no image")
    _age(tree)
    first = list_tree(tree)
    (kept,) = (tmp_path / "cache").rglob("*.listing")
    # others look at no file
    monkeypatch.setattr(listing, "walk_images", None)
    again = list_tree(tree)
    assert _seen(again) == _seen(first)
    assert first.others == {"class1/notes.txt": "not an image"}
    # mapped, not read
    assert isinstance(again.names.text, np.memmap)
    kept.write_bytes(kept.read_bytes()[:-50])
    with pytest.raises(TypeError):
        list_tree(tree)


@pytest.mark.parametrize("change", ["added", "removed", "deeper", "class"])
def test_a_changed_tree_is_listed_anew(tree, change):
    before = [*list_tree(tree).names]
    photo = (tree / "class0" / "0.jpg").read_bytes()
    if change == "removed":
        (tree / "class0" / "0.jpg").unlink()
    elif change == "class":
        (tree / "class2").mkdir()
        (tree / "class2" / "new.jpg").write_bytes(photo)
    else:
        place = tree / "class0" / ("more" if change == "deeper" else "")
        (place / "new.jpg").write_bytes(photo)
    after = [*list_tree(tree).names]
    assert len(after) == len(before) + (-1 if change == "removed" else 1)


def test_a_tree_that_is_still_being_written_is_not_kept(tree, tmp_path):
    (tree / "class0" / "new.jpg").write_bytes((tree / "class0" / "0.jpg").read_bytes())
    list_tree(tree)
    assert not list((tmp_path / "cache").rglob("*.listing"))


def test_a_small_tree_leaves_nothing_behind(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "MIN_KEPT", 1000)
    list_tree(tree)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_done_without(tree, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(list_tree(tree).names) == 7


def test_a_folder_without_classes_is_refused(tree):
    with pytest.raises(InputError, match="has no class folders of images"):
        list_tree(tree / "class1")


def test_names_are_any_bytes():
    names = ["a/b.jpg", "", os.fsdecode(b"\xff\xfe"), "h\u00e9\u4e2d"]
    kept = Names.of(names)
    assert [*kept] == names
    assert [*kept.chosen([3, 0])] == [names[3], names[0]]
    with pytest.raises(IndexError):
        kept[4]
