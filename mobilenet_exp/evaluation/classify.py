"""Classifies photos: the five best names and their probabilities."""

from pathlib import Path

import torch

from mobilenet_exp.core.errors import InputError, NonFiniteLossError
from mobilenet_exp.core.text import as_csv, printable
from mobilenet_exp.data.augment import EvalTransform, Normaliser
from mobilenet_exp.datasets.folders import Files, is_meant_as_image, list_images
from mobilenet_exp.datasets.images import open_file
from mobilenet_exp.machine.compute import Precision, autocast
from mobilenet_exp.weights.load import LoadedModel

# file, note about it, the best names with their probabilities in percent
Answer = tuple[str, str, list[tuple[str, float]]]


@torch.inference_mode()
def classify_photos(
    loaded: LoadedModel, path: str, device: torch.device, precision: Precision = Precision.FLOAT32
) -> tuple[list[Answer], dict[str, str]]:
    """Classify a photo, or each photo of a folder.

    Returns the best five names of each with their probabilities in percent, and the files
    that could not be read with the reason.
    """
    target = Path(path)
    if not target.exists():
        raise InputError("image", path, "no such file or folder")
    photos, others = list_images(target) if target.is_dir() else Files([target], {})
    if not photos:
        first = next((f"; {each.name}: {why}" for each, why in others.items()), "")
        raise InputError("image", path, f"holds no images{first}")
    prepared, names = loaded.preprocessing, loaded.names()
    transform = EvalTransform(prepared, exact=False)
    normalise = Normaliser(prepared.mean, prepared.std, device)
    pixels = torch.empty((1, prepared.resolution, prepared.resolution, 3), dtype=torch.uint8)
    model = loaded.network.to(device)
    answers: list[Answer] = []
    unread = {str(each): why for each, why in others.items() if is_meant_as_image(each)}
    for photo in photos:
        try:
            opened = open_file(photo)
            transform(opened, pixels[0].numpy())
        except OSError as error:
            unread[str(photo)] = str(error).removeprefix(f"{photo} ")
            continue
        images = normalise(pixels)
        with autocast(device, precision):
            logits = model(images).float()
        if not logits.isfinite().all():
            problem = f"the network's answers to {photo} are not finite numbers"
            raise NonFiniteLossError(
                f"{problem}: its weights are damaged, or {precision} overflows"
            )
        best = logits.softmax(1)[0].topk(min(5, logits.shape[1]))
        guesses = [
            (names[index], 100 * probability)
            for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        answers.append((str(photo), opened.note, guesses))
    return answers, unread


def photos_csv(answers: list[Answer], unread: dict[str, str]) -> str:
    """Return a table with a row for each photo: its best five names, or why there are none."""
    most = max((len(guesses) for _, _, guesses in answers), default=0)
    best = [word for n in range(1, most + 1) for word in (f"answer{n}", f"percent{n}")]
    rows: list[list[object]] = [["image", *best, "note"]]
    for photo, note, guesses in answers:
        cells = [cell for name, share in guesses for cell in (name, f"{share:.2f}")]
        rows.append([printable(photo), *cells, note])
    rows += [[printable(photo), *[""] * len(best), reason] for photo, reason in unread.items()]
    return as_csv(rows)
