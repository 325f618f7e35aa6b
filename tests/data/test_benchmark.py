"""The benchmark of the image path, at its smallest and without peers' scripts."""

from benchmarks import data, growth


def test_every_loader_gives_all_its_images(tmp_path):
    root = tmp_path / "set"
    data.write_images(root, {"train": 16, "val": 10})
    assert len(list((root / "train").rglob("*.jpg"))) == 16
    found = data.alone(root, batch=8, workers=1, rounds=1)
    assert set(found) >= {"torchvision", "timm", "ours", "ours, packed at 256 px, raw"}
    assert all(len(speeds) == 1 and speeds[0] > 0 for speeds in found.values())
    assert set(found) >= {"whole files decoded alone", "crops decoded alone"}


def test_what_is_measured_apart_comes_back(tmp_path):
    root = tmp_path / "set"
    data.write_images(root, {"train": 16, "val": 10})
    (case,) = growth.settings(root, batch=8, side=32, workers=1)[-1:]
    ((side, batch, workers, images_per_s, peak),) = growth.speeds([case])
    assert (side, batch, workers) == (32, 8, 2)
    assert images_per_s > 0
    # torch alone takes as much
    assert peak > 100


def test_the_first_batch_of_many_images_takes_little():
    ((size, seconds, memory),) = growth.first_batches([10**6])
    assert size == 10**6
    # a number of 4 bytes and a seed of 8 for each; a Python object would take ten times that
    assert seconds < 2
    assert memory < 60
