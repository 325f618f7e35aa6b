"""Images that an exported file is compared on, and those of its int8 calibration."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mobilenet_exp.config.schema import ExportConfig, Preprocessing
from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.text import plural
from mobilenet_exp.data.augment import EvalTransform, Normaliser
from mobilenet_exp.data.loaders import build_eval_loader
from mobilenet_exp.datasets.images import name_of, open_file
from mobilenet_exp.datasets.photos import find_photos
from mobilenet_exp.evaluation.scoring import eval_data
from mobilenet_exp.weights.load import LoadedModel


def real_images(prepared: Preprocessing) -> Tensor:
    """Return photographs of installed packages and parts of them, as inputs (N, 3, H, W)."""
    transform = EvalTransform(prepared, exact=False)
    side = prepared.resolution
    pixels = []
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(find_photos()):
            photo = Image.open(path).convert("RGB")
            half = photo.crop((0, 0, photo.width // 2, photo.height // 2))
            for name, picture in (("whole", photo), ("part", half)):
                file = Path(folder) / f"{number}-{name}.png"
                picture.save(file, compress_level=1)
                pixels.append(torch.empty((side, side, 3), dtype=torch.uint8))
                transform(open_file(file), pixels[-1].numpy())
    normalise = Normaliser(prepared.mean, prepared.std, torch.device("cpu"))
    return normalise(torch.stack(pixels)).contiguous()


def calibration_images(config: ExportConfig, loaded: LoadedModel) -> list[Tensor]:
    """Return training images, spread over the whole set, as inputs (1, 3, H, W).

    They are prepared as for an evaluation. Raises InputError where no data is known.
    """
    data = replace(eval_data(config.data, loaded), batch_size=1)
    loader, share = build_eval_loader(data, split="train", most=config.calibration_images)
    total = len(share.images)
    count = min(config.calibration_images, total)
    found, left_out = [], []
    for index, (images, labels, batch) in enumerate(loader):
        # one that cannot be read has no label
        if labels.item() >= 0:
            found.append(images.contiguous())
        else:
            left_out.append(f"{name_of(share.images, index * total // count)} {batch.notes[0]}")
        if left_out and data.on_bad_image == "fail":
            problem = f"{data.root}: {left_out[0]}; data.on_bad_image=skip leaves it out"
            raise InputError("data.on_bad_image", "fail", problem)
    if not found:
        raise InputError("data.root", data.root, "holds no image that can be read")
    if left_out:
        problem = f"{plural(len(left_out), 'image')} of {count} left out: {left_out[0]}"
        console.line(f"calibration: {problem}" + (", ..." if len(left_out) > 1 else ""))
    return found
