"""From a decoded image to the input of a network."""

import pytest
import timm
import torch
import torchvision
from image_folders import CHINA, HOPPER
from PIL import Image
from torchvision import transforms

from mobilenet_exp import build_model
from mobilenet_exp.config.schema import DataConfig
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data.transforms import eval_transform, side_of_epoch, train_transform
from mobilenet_exp.weights.published import find_published

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def test_imagefolder_preprocessing_is_the_old_repos(folder):
    """RandomResizedCrop, flip, mean/std; Resize 256, CenterCrop 224: pixel for pixel."""
    data = DataConfig(name="imagefolder")
    image = Image.open(next((folder / "val").rglob("*.jpg"))).convert("RGB")
    tail = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    old_eval = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *tail])
    torch.testing.assert_close(eval_transform(data)(image), old_eval(image), rtol=0, atol=1e-6)

    crops = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    old_train = transforms.Compose([*crops, *tail])
    for seed in range(5):
        torch.manual_seed(seed)
        expected = old_train(image)
        torch.manual_seed(seed)
        found = train_transform(data)(image)
        torch.testing.assert_close(torch.as_tensor(found), expected, rtol=0, atol=1e-6)


def _data(**options) -> DataConfig:
    common = {"name": "fake", "batch_size": 4, "resolution": 32, "crop_pct": 1.0}
    return DataConfig(augment="none", **(common | options))


@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "ta_wide", "rand-m9-n2-mstd0.5"])
def test_every_policy_changes_images_and_keeps_their_shape(policy):
    plain, augmented = train_transform(_data()), train_transform(_data(auto_augment=policy))
    noise = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    photo = Image.fromarray(noise.permute(1, 2, 0).numpy())
    for image in (noise, photo):
        results = [augmented(image) for _ in range(8)]
        assert all(each.shape == (3, 32, 32) for each in results)
        assert any(not torch.equal(each, plain(image)) for each in results)


@pytest.mark.parametrize("policy", ["rand-q9", "autoaugment", "rand-mx", "rand"])
def test_a_policy_that_is_not_understood_is_refused(policy):
    if policy == "rand":
        policy = "random"
    with pytest.raises(InputError, match=f"data.auto_augment={policy}: not understood; allowed"):
        train_transform(_data(auto_augment=policy))


def test_erasing_takes_the_mean_or_noise():
    image = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    assert train_transform(_data(random_erase=1.0))(image).eq(0).any()
    noisy = train_transform(_data(random_erase=1.0, erase_mode="pixel"))(image)
    assert len(noisy.unique()) > 50


def test_the_side_rises_to_that_of_training():
    data = _data(resolution=224, train_resolution=192, progressive_from=96)
    sides = [side_of_epoch(data, epoch, 10) for epoch in range(1, 11)]
    assert (sides[0], sides[-1]) == (96, 192)
    assert sides == sorted(sides)
    assert all(side % 32 == 0 for side in sides)
    assert side_of_epoch(_data(resolution=224), 1, 10) == 224
    built = build_model("v3_small", width_mult=0.35, num_classes=10)
    assert {built(torch.randn(1, 3, side, side)).shape for side in sides} == {(1, 10)}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("torchvision:IMAGENET1K_V1", "v3_small"),
        ("torchvision:IMAGENET1K_V2", "v3_large"),
        ("timm:mobilenetv3_large_100.ra_in1k", "v3_large"),
        ("timm:mobilenetv4_conv_medium.e500_r256_in1k", "v4_conv_medium"),
        ("timm:mobilenetv1_125.ra4_e3600_r224_in1k", "v1"),
    ],
)
def test_published_preprocessing_is_the_library_s_pixel_for_pixel(name, model):
    width = 1.25 if "125" in name else 1.0
    ours = eval_transform(find_published(name, model, width).preprocessing)
    library, _, rest = name.partition(":")
    if library == "timm":
        config = timm.data.resolve_data_config(timm.get_pretrained_cfg(rest).to_dict())
        theirs = timm.data.create_transform(**config)
    else:
        arch = {"v3_small": "mobilenet_v3_small", "v3_large": "mobilenet_v3_large"}[model]
        theirs = torchvision.models.get_model_weights(arch)[rest].transforms()
    for path in (CHINA, HOPPER):
        image = Image.open(path).convert("RGB")
        # pixels are the same, the last digit of their scaling is not
        torch.testing.assert_close(
            ours(image).as_subclass(torch.Tensor), theirs(image), rtol=0, atol=2e-6
        )
