"""Mixup and cutmix."""

import pytest
import torch

from mobilenet_exp.config.schema import DataConfig
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data.mixing import Mixing
from mobilenet_exp.training.train import build_state

pytestmark = pytest.mark.usefixtures("tiny")

SMALL = (
    "model.name=tiny",
    "data=fake", "data.resolution=32", "data.args.num_images=64", "data.batch_size=16",
    "train.epochs=1",
)  # fmt: skip

LENGTH = {"epochs": 2, "steps_per_epoch": 10}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def _data(**options) -> DataConfig:
    common = {"name": "fake", "batch_size": 4, "resolution": 32, "crop_pct": 1.0}
    return DataConfig(augment="none", mean=MEAN, std=STD, **(common | options))


def test_mixing_joins_images_and_labels_in_the_same_shares():
    mixing = Mixing(_data(mixup=0.5), num_classes=4, seed=0, **LENGTH)
    images = torch.eye(4).view(4, 1, 2, 2).repeat(1, 3, 1, 1)
    labels = torch.arange(4)
    mixed, targets = mixing(images.clone(), labels, step=5)
    share = targets[0, 0].item()
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.flip(0))
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    again, _ = mixing(images.clone(), labels, step=5)
    assert torch.equal(again, mixed)
    other, _ = mixing(images.clone(), labels, step=6)
    assert not torch.equal(other, mixed)


def test_cutmix_shares_are_areas_and_nothing_is_mixed_unless_asked():
    assert not _data().mixes
    mixing = Mixing(_data(cutmix=1.0), num_classes=2, seed=1, **LENGTH)
    images = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    mixed, targets = mixing(images, torch.tensor([0, 1]), step=0)
    assert set(mixed.unique().tolist()) <= {0.0, 1.0}
    assert targets[0, 1].item() == pytest.approx(mixed[0].mean().item())
    never = Mixing(_data(cutmix=1.0, mix_prob=0.0), num_classes=2, seed=1, **LENGTH)
    assert torch.equal(never(images.clone(), torch.tensor([0, 1]), step=0)[0], images)


def test_an_odd_batch_cannot_be_mixed(quick):
    with pytest.raises(InputError, match=r"must be divisible by 2 \(accumulate x pairs\)"):
        build_state(quick(*SMALL, "data.mixup=0.2", "data.batch_size=15"))


def test_the_last_epochs_are_not_mixed():
    mixing = Mixing(_data(mixup=0.5, mix_off_epochs=1), num_classes=4, seed=0, **LENGTH)
    labels = torch.tensor([0, 1, 2, 3])
    assert mixing(torch.randn(4, 3, 8, 8), labels, 9)[1].shape == (4, 4)
    images = torch.randn(4, 3, 8, 8)
    found, targets = mixing(images.clone(), labels, 10)
    assert torch.equal(found, images)
    assert torch.equal(targets, labels)
    with pytest.raises(InputError, match="data.mix_off_epochs=2: leaves no epoch in which"):
        Mixing(_data(mixup=0.5, mix_off_epochs=2), num_classes=4, seed=0, **LENGTH)
