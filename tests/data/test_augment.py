"""From a decoded image to the input of a network."""

import random
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torchvision
from image_folders import CHINA, HOPPER
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2

from mobilenet_exp import build_model
from mobilenet_exp.config.schema import DataConfig, Preprocessing
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data import augment
from mobilenet_exp.data.augment import (
    Augment,
    EvalTransform,
    Normaliser,
    TrainTransform,
    side_of_epoch,
)
from mobilenet_exp.datasets.images import open_file, opened
from mobilenet_exp.weights.pretrained import find_published

CPU = torch.device("cpu")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def _train(image, data: DataConfig, seed: int = 0) -> Tensor:
    """Return the network's input in training, of Pillow's image or a tensor."""
    side = side_of_epoch(data, 1, 1)
    pixels = torch.empty((1, side, side, 3), dtype=torch.uint8)
    erasure = TrainTransform(data, side)(opened(image), seed, pixels[0].numpy())
    return Normaliser(data.mean, data.std, CPU)(pixels, {0: erasure} if erasure else {})[0]


def _eval(image, data, *, exact: bool) -> Tensor:
    pixels = torch.empty((1, data.resolution, data.resolution, 3), dtype=torch.uint8)
    EvalTransform(data, exact=exact)(opened(image), pixels[0].numpy())
    return Normaliser(data.mean, data.std, CPU)(pixels)[0]


def test_exact_preprocessing_is_the_old_repos(folder):
    """RandomResizedCrop, flip, mean/std; Resize 256, CenterCrop 224: pixel for pixel."""
    data = DataConfig(name="imagefolder", resize="exact")
    image = Image.open(next((folder / "val").rglob("*.jpg"))).convert("RGB")
    tail = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    old_eval = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *tail])
    torch.testing.assert_close(_eval(image, data, exact=True), old_eval(image), rtol=0, atol=1e-6)
    crops = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    old_train = transforms.Compose([*crops, *tail])
    for seed in range(5):
        torch.manual_seed(seed)
        expected = old_train(image)
        torch.testing.assert_close(_train(image, data, seed), expected, rtol=0, atol=1e-6)


AUGMENTS = {
    "random_resized_crop": [v2.RandomResizedCrop(48), v2.RandomHorizontalFlip()],
    "inception": [
        v2.RandomResizedCrop(48),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(32 / 255, 0.5, 0.5, 0.2),
    ],
    "pad_crop_flip": [
        v2.Resize((48, 48)),
        v2.RandomCrop(48, padding=6),
        v2.RandomHorizontalFlip(),
    ],
    "affine": [
        v2.Resize((48, 48)),
        v2.RandomAffine(10, (0.1, 0.1), (0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR),
    ],
    "none": [v2.Resize((48, 48))],
}


@pytest.mark.parametrize("policy", [None, "imagenet", "ta_wide", "rand-m9-n2-mstd0.5"])
@pytest.mark.parametrize("augment", AUGMENTS)
def test_augmentation_draws_what_the_libraries_would(augment, policy):
    data = _data(resolution=48, augment=augment, auto_augment=policy, random_erase=0.5,
                 erase_mode="pixel", resize="exact")  # fmt: skip
    steps: list = []
    if policy == "imagenet":
        steps = [v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)]
    elif policy == "ta_wide":
        steps = [v2.TrivialAugmentWide()]
    elif policy:
        steps = [rand_augment_transform(policy, {"img_mean": (124, 116, 104)})]
    tail = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    erase = RandomErasing(0.5, mode="pixel", device="cpu")
    library = v2.Compose([*AUGMENTS[augment], *steps, *tail, erase])
    image = Image.open(CHINA).convert("RGB").crop((50, 80, 350, 280))
    for seed in range(4):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        expected = library(image).as_subclass(Tensor)
        assert torch.equal(_train(image, data, seed), expected)


@pytest.mark.parametrize("jitter", [0.4, 1.0])
@pytest.mark.parametrize("resize", ["fast", "exact"])
def test_colours_change_as_torchvision_changes_them(jitter, resize):
    photo = Image.open(CHINA).convert("RGB").crop((50, 80, 350, 280))
    image = photo if resize == "exact" else v2.functional.pil_to_tensor(photo)
    data = _data(resolution=48, augment="random_resized_crop", color_jitter=jitter,
                 mean=[0.0] * 3, std=[1 / 255] * 3, resize=resize)  # fmt: skip
    library = v2.Compose([*AUGMENTS["random_resized_crop"], v2.ColorJitter(jitter, jitter, jitter)])
    for seed in range(4):
        torch.manual_seed(seed)
        expected = v2.functional.to_image(library(image)).as_subclass(Tensor)
        assert torch.equal(_train(image, data, seed).round().byte(), expected)


@pytest.mark.parametrize("resize", ["fast", "exact"])
def test_training_resizes_by_either_method_or_by_both(resize):
    photo = Image.open(CHINA).convert("RGB")
    found = {}
    for method in ("bilinear", "bicubic", "random"):
        data = _data(resolution=48, train_interpolation=method, resize=resize)
        found[method] = [_train(photo, data, seed) for seed in range(16)]
    assert not torch.equal(found["bilinear"][0], found["bicubic"][0])
    mode = v2.InterpolationMode.BICUBIC
    expected = v2.functional.resize(v2.functional.pil_to_tensor(photo), [48, 48], mode)
    pixels = [255 * (each * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None])
              for each in found["bicubic"][:1]]  # fmt: skip
    assert (pixels[0] - expected).abs().max() <= 2.01
    each_is = [
        [torch.equal(random_, found[method][seed]) for method in ("bilinear", "bicubic")]
        for seed, random_ in enumerate(found["random"])
    ]
    assert all(sum(pair) == 1 for pair in each_is)
    assert 4 < sum(is_bilinear for is_bilinear, _ in each_is) < 12


@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_tensor_is_augmented_as_torchvision_augments_tensors(augment):
    """Fast: the digits, and all that is held in memory, keep their pixels."""
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    data = _data(resolution=48, augment=augment, mean=[0.0] * 3, std=[1 / 255] * 3)
    for seed in range(4):
        torch.manual_seed(seed)
        expected = v2.Compose(AUGMENTS[augment])(image)
        assert torch.equal(_train(image, data, seed).round().byte(), expected)


def _data(**options) -> DataConfig:
    common = {"name": "fake", "batch_size": 4, "resolution": 32, "crop_pct": 1.0}
    return DataConfig(**({"augment": "none"} | common | options))


@pytest.mark.parametrize("path", [CHINA, HOPPER])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resolution", [64, 224, 320, 1000])
def test_fast_resizing_differs_from_pillow_s_by_a_digit(path, interpolation, resolution):
    """Of 255: smaller, larger, and only decoded as far as the middle reaches."""
    image = Image.open(path).convert("RGB")
    prepared = Preprocessing(
        resolution=resolution, interpolation=interpolation, mean=[0.0] * 3, std=[1 / 255] * 3
    )
    fast, exact = (_eval(image, prepared, exact=each) for each in (False, True))
    _assert_near(fast, exact)
    for seed in range(3):
        found = [
            _train(image, _data(augment="random_resized_crop", resolution=resolution,
                                mean=[0.0] * 3, std=[1 / 255] * 3, resize=each), seed)
            for each in ("fast", "exact")
        ]  # fmt: skip
        _assert_near(*found)


def _assert_near(fast: Tensor, exact: Tensor) -> None:
    """A few pixels in ten thousand differ by 2, and only where an image is enlarged."""
    difference = (fast - exact).abs().round()
    assert difference.max() <= 2
    assert (difference > 1).float().mean() < 1e-4
    assert difference.mean() < 0.25


def test_an_image_of_the_asked_size_is_only_cropped():
    image = Image.open(CHINA).convert("RGB").resize((320, 256))
    fast, exact = (_eval(image, Preprocessing(), exact=each) for each in (False, True))
    assert torch.equal(fast, exact)


@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "ta_wide", "rand-m9-n2-mstd0.5"])
def test_every_policy_changes_images_and_keeps_their_shape(policy):
    noise = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    photo = Image.fromarray(noise.permute(1, 2, 0).numpy())
    for image in (noise, photo):
        plain = _train(image, _data())
        results = [_train(image, _data(auto_augment=policy), seed) for seed in range(8)]
        assert all(each.shape == (3, 32, 32) for each in results)
        assert any(not torch.equal(each, plain) for each in results)


@pytest.mark.parametrize("policy", ["rand-q9", "autoaugment", "rand-mx", "rand"])
def test_a_policy_that_is_not_understood_is_refused(policy):
    if policy == "rand":
        policy = "random"
    with pytest.raises(InputError, match=f"data.auto_augment={policy}: not understood; allowed"):
        TrainTransform(_data(auto_augment=policy), 32)


def test_erasing_takes_the_mean_or_noise():
    image = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    assert _train(image, _data(random_erase=1.0)).eq(0).any()
    noisy = _train(image, _data(random_erase=1.0, erase_mode="pixel"))
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
    prepared = find_published(name, model, width).preprocessing
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
        ours = _eval(image, prepared, exact=True)
        torch.testing.assert_close(ours, theirs(image), rtol=0, atol=2e-6)


@pytest.mark.parametrize("exact", [False, True])
def test_of_a_very_long_image_the_middle_alone_is_resized(exact, tmp_path):
    """60,000 x 1 pixels in 261 bytes would become 256 x 15 million."""
    pixels = np.zeros((1, 60_001, 3), np.uint8)
    pixels[:, 30_000 - 3 : 30_000 + 4] = (9, 200, 30)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    out = np.empty((224, 224, 3), np.uint8)
    asked: list = []
    whole = open_file(tmp_path / "x.png")
    noted = replace(whole, decode=lambda box: asked.append(box) or whole.decode(box))
    EvalTransform(Preprocessing(), exact=exact)(noted, out)
    assert asked[0].width <= 17
    assert np.array_equal(out[100, 112], (9, 200, 30))


def test_a_registered_augmentation_keeps_its_own_steps():
    steps = []
    augment.AUGMENTS._builders["own"] = lambda side: Augment(steps)
    try:
        data = DataConfig(name="fake", augment="own", auto_augment="ta_wide", color_jitter=0.1)
        assert len(TrainTransform(data, 32).steps) == len(TrainTransform(data, 64).steps) == 2
    finally:
        del augment.AUGMENTS._builders["own"]
    assert steps == []
