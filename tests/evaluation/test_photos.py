"""Photos are classified with the names of the classes."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import sklearn
import torch
import torchvision
from layout_nets import KuanWangV3, randomize
from PIL import Image

from mobilenet_exp import evaluate
from mobilenet_exp.data import imagenet

PHOTOS = Path(sklearn.__file__).parent / "datasets" / "images"

CHINA, FLOWER = PHOTOS / "china.jpg", PHOTOS / "flower.jpg"

HOPPER = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Real photographs, and what people's folders hold besides."""
    folder = tmp_path_factory.mktemp("photos")
    for path in (CHINA, FLOWER, HOPPER):
        (folder / path.name).write_bytes(path.read_bytes())
    china = Image.open(CHINA)
    china.convert("L").save(folder / "grey.jpg")
    china.convert("CMYK").save(folder / "cmyk.jpg")
    deep = np.asarray(china.convert("L")).astype("uint16") * 257
    Image.fromarray(deep).save(folder / "deep.png")
    china.convert("RGBA").save(folder / "alpha.png")
    china.save(folder / "a_png.jpg", format="PNG")
    content = CHINA.read_bytes()
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mobilenetv3_small_67.4.pth.tar"
    torch.save(randomize(KuanWangV3("small")).state_dict(), path)
    return path


def test_photos_are_named_with_imagenet_s_names(compose_config, photos, weights, capsys):
    words = ("model=kuanwang_v3_small", f"weights={weights}", "run.device=cpu")
    config = compose_config(*words, f"image={photos}", program="eval")
    assert evaluate(config) == {"num_left_out": 3, "num_missing": 0}
    printed = capsys.readouterr().out
    assert "LEFT OUT" in printed
    assert "(16-bit, greyscale)" in printed
    # the answer is the layout's own module's
    net = KuanWangV3("small").eval()
    net.load_state_dict(torch.load(weights))
    transform = torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.transforms()
    with torch.no_grad():
        best = net(transform(Image.open(HOPPER).convert("RGB"))[None]).softmax(1)[0].max(0)
    evaluate(compose_config(*words, f"image={HOPPER}", program="eval"))
    printed = " ".join(capsys.readouterr().out.split())
    name = imagenet.class_names()[best.indices]
    assert f"{name} {100 * best.values:.2f}" in printed
