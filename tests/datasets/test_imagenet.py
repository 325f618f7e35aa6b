"""ImageNet's classes, and its validation set in one flat folder."""

import pytest
import torchvision

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.datasets import imagenet


@pytest.mark.parametrize("form", ["names and ids", "ids alone", "kaggle"])
def test_labels_come_in_several_forms(flat, tmp_path, form):
    names = sorted(path.stem for path in (flat / "val").iterdir())
    ids = imagenet.class_ids()
    lines = {
        "names and ids": [f"{name}.JPEG {ids[i]}" for i, name in enumerate(names)],
        "ids alone": [ids[i] for i in range(len(names))],
        "kaggle": ["ImageId,PredictionString"]
        + [f"{name},{ids[i]} 1 2 3 4" for i, name in enumerate(names)],
    }[form]
    (tmp_path / "labels").write_text("\n".join(lines) + "\n")
    files = imagenet.flat_images(flat / "val", str(tmp_path / "labels"))
    assert files.labels.tolist() == list(range(12))
    assert (files.problems, files.missing) == ({}, [])


def test_imagenet_s_names_are_torchvision_s():
    theirs = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    firsts = [name.partition(",")[0] for name in imagenet.class_names()]
    assert sum(a == b for a, b in zip(firsts, theirs, strict=True)) > 950
    assert (imagenet.class_ids()[0], firsts[652]) == ("n01440764", "military uniform")


def test_labels_from_1_to_1000_are_refused(flat, tmp_path):
    (tmp_path / "labels").write_text("\n".join(f"n{i}.JPEG {i}" for i in range(1, 1001)))
    with pytest.raises(InputError, match="run from 1 to 1000; must run from 0 to 999"):
        imagenet.flat_images(flat / "val", str(tmp_path / "labels"))


def test_heads_comments_and_a_byte_order_mark_are_no_images(flat, tmp_path):
    names = sorted(path.name for path in (flat / "val").iterdir())
    lines = ["# by hand", "filename,label", *(f"{name},7" for name in names)]
    (tmp_path / "labels").write_text("\n".join(lines), encoding="utf-8-sig")
    files = imagenet.flat_images(flat / "val", str(tmp_path / "labels"))
    assert (files.problems, files.missing) == ({}, [])
