"""One evaluation: every image scored once, on any number of processes."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mobilenet_exp.config.convert import resolved_exif
from mobilenet_exp.config.schema import (
    EvalConfig,
    EvalDataConfig,
    EvalImages,
    ImagesConfig,
    ImageSource,
)
from mobilenet_exp.core.console import Show
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data.loaders import LoaderOptions, build_eval_loader
from mobilenet_exp.datasets import imagenet
from mobilenet_exp.datasets.folders import is_meant_as_image
from mobilenet_exp.datasets.images import ImageFiles, name_of
from mobilenet_exp.datasets.sets import ImageSet
from mobilenet_exp.evaluation import metrics
from mobilenet_exp.evaluation.metrics import Predictions
from mobilenet_exp.evaluation.predict import predict
from mobilenet_exp.machine.compute import Compute
from mobilenet_exp.machine.distributed import World
from mobilenet_exp.weights.load import LoadedModel


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found. `left_out` and `converted` map an image's name to the reason."""

    answers: Predictions
    num_classes: int
    images: ImageSet
    scores: dict[str, float]
    left_out: dict[str, str]
    converted: dict[str, str]
    # files in the class folders that are no images, with the reason
    others: dict[str, str]
    # files that have a label but are not in the folder
    missing: list[str]
    # scores against ImageNet-ReaL's labels; None without `data.real_labels`
    real: dict[str, float] | None

    @cached_property
    def confusion(self) -> metrics.Confusion:
        """Return the sparse confusion matrix; computed on first use."""
        return metrics.Confusion.of(self.answers, self.num_classes)


@dataclass
class Notes:
    """What was converted or could not be read, by the image's number in the set."""

    converted: dict[int, str]
    bad: dict[int, str]

    def merge(self, others: list["Notes"]) -> None:
        for other in others:
            self.converted |= other.converted
            self.bad |= other.bad


def eval_data(asked: EvalDataConfig, loaded: LoadedModel) -> EvalImages:
    """Return the data to score on, prepared as the network wants it.

    That is the named set, or, for a run's checkpoint, the run's own data.
    """
    given: dict[str, Any] = asdict(asked)
    batch_size = given["batch_size"] or 64
    if asked.name is None:
        if loaded.trained_by is None:
            raise InputError("data", None, "must be given, e.g. data=imagenet, or image=PHOTO")
        own = asdict(loaded.trained_by.data)
        images = {key: own[key] for key in ImagesConfig.__dataclass_fields__}
        # where the images are on this machine
        given_here = (*ImageSource.__dataclass_fields__, "exif", "resize", "val_share", "val_seed")
        batch_size = given["batch_size"] or own["batch_size"]
        given |= images | {key: given[key] for key in given_here if _is_given(given[key])}
    prepared = asdict(loaded.preprocessing)
    given |= {
        "exif": given["exif"] or "ignore",
        "resize": given["resize"] or "fast",
        "val_seed": given["val_seed"] or 0,
    }
    data = EvalImages(**given | prepared | {"batch_size": batch_size})
    return replace(data, exif=resolved_exif(data))


def _is_given(value: object) -> bool:
    # 0 is: it may be a seed
    return value is not None and value is not False and value != {}


def score(
    loaded: LoadedModel,
    data: EvalImages,
    config: EvalConfig,
    *,
    compute: Compute,
    world: World,
    show: Show,
) -> EvalResult:
    """Score a network on a data set; every process of `world` returns the whole result.

    Raises InputError if the classes differ, and with `data.on_bad_image=fail` for an
    image that cannot be scored.
    """
    loader, images = build_eval_loader(
        data,
        first=world.rank,
        step=world.size,
        options=LoaderOptions(
            compute.device, config.run.workers, config.run.image_timeout, world.ranks_on_machine
        ),
    )
    unread, others = _unread(images, data)
    key, value = ("data.root", data.root) if loaded.classes else ("data", data.name)
    if loaded.classes is not None and images.classes != loaded.classes:
        raise InputError(key, value, "has other classes than the checkpoint was trained on")
    if loaded.classes is None and len(images.classes) != loaded.num_classes:
        problem = f"has {len(images.classes)} classes, the weights have {loaded.num_classes}"
        raise InputError(key, value, problem)
    real = _real_labels(data, images) if data.real_labels else None
    model = loaded.network.to(compute.device, memory_format=compute.memory_format)
    notes = Notes({}, {})
    batches = _noting(show(loader, "evaluate", len(loader)), notes, world, images, data)
    part = predict(
        model,
        batches,
        compute.device,
        precision=compute.precision,
        first=world.rank,
        step=world.size,
    )
    answers = metrics.merge(world.gather(part))
    notes.merge(world.gather(notes))
    left_out = unread | _by_name(notes.bad, images)
    if not len(answers.index):
        first = next(iter(left_out.items()), ("", "no images"))
        problem = f"no image could be scored; the first: {' '.join(first)}"
        raise InputError("data.root", data.root, problem)
    if len(answers.index) + len(notes.bad) != len(images.images):
        raise RuntimeError("an image was neither scored nor reported")
    return EvalResult(
        answers,
        loaded.num_classes,
        images,
        metrics.scores(answers, config.run.metrics),
        left_out=left_out,
        converted=_by_name(notes.converted, images),
        others=others,
        missing=images.images.missing if isinstance(images.images, ImageFiles) else [],
        real=metrics.score_sets(answers, real) if real else None,
    )


def _unread(images: ImageSet, data: EvalImages) -> tuple[dict[str, str], dict[str, str]]:
    """Return the images of formats that cannot be read, and the files that are no images."""
    found = images.images.others if isinstance(images.images, ImageFiles) else {}
    unread = {name: why for name, why in found.items() if is_meant_as_image(Path(name))}
    if unread and data.on_bad_image == "fail":
        name, why = next(iter(unread.items()))
        problem = f"{data.root}: {name} {why}; data.on_bad_image=skip leaves it out"
        raise InputError("data.on_bad_image", "fail", problem)
    return unread, {name: why for name, why in found.items() if name not in unread}


def _noting(
    batches: Iterable, notes: Notes, world: World, images: ImageSet, data: EvalImages
) -> Iterator:
    """Pass batches on and keep their notes by the image's number in the set."""
    position = world.rank
    for tensors, labels, batch in batches:
        for label, text in zip(batch.labels, batch.notes, strict=True):
            if label < 0 and data.on_bad_image == "fail":
                name = name_of(images.images, position)
                problem = f"{data.root}: {name} {text}; data.on_bad_image=skip leaves it out"
                raise InputError("data.on_bad_image", "fail", problem)
            if text:
                (notes.bad if label < 0 else notes.converted)[position] = text
            position += world.size
        yield tensors, labels


def _by_name(notes: dict[int, str], images: ImageSet) -> dict[str, str]:
    return {name_of(images.images, index): notes[index] for index in sorted(notes)}


def _real_labels(data: EvalImages, images: ImageSet) -> list[set[int]]:
    if not data.is_imagenet:
        raise InputError("data.real_labels", True, "is only for data=imagenet")
    return imagenet.real_labels(images.images)
