"""What a network sees on a photo: the best names and their probabilities.

Prints nothing.
"""

from pathlib import Path

import torch
from torch import Tensor

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data.images import find_images, read_picture
from mobilenet_exp.data.loaders import eval_transform
from mobilenet_exp.machine.device import autocast
from mobilenet_exp.weights.loaded import Subject


@torch.inference_mode()
def name_photos(
    subject: Subject, path: str, device: torch.device
) -> tuple[list[tuple[str, str, list[tuple[str, float]]]], dict[str, str]]:
    """Answer a photo, or each photo of a folder.

    Returns (file, note, the best five names with their probabilities in percent), and
    the files that could not be read with the reason.
    """
    place = Path(path)
    if not place.exists():
        raise InputError("image", path, "no such file or folder")
    photos = find_images(place) if place.is_dir() else [place]
    if not photos:
        raise InputError("image", path, "no images in this folder")
    transform, names = eval_transform(subject.preprocessing), subject.names()
    model = subject.model.to(device)
    answers, unread = [], {}
    for photo in photos:
        try:
            picture = read_picture(photo)
        except OSError as error:
            unread[str(photo)] = str(error).removeprefix(f"{photo} ")
            continue
        images = transform(picture.image).as_subclass(Tensor)[None].to(device)
        with autocast(device):
            logits = model(images).float()
        best = logits.softmax(1)[0].topk(min(5, logits.shape[1]))
        guesses = [
            (names[index], 100 * share)
            for share, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        answers.append((str(photo), picture.note, guesses))
    return answers, unread
