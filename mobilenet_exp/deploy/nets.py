"""The networks that are timed: from a name, a peer's, or a run; each with its own side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torchvision import models

from mobilenet_exp.config.convert import to_part
from mobilenet_exp.config.schema import ImagesConfig, ModelConfig
from mobilenet_exp.core import ranges
from mobilenet_exp.core.errors import InputError, first_line
from mobilenet_exp.deploy.foreign import ForeignModel, open_foreign
from mobilenet_exp.models.build import config_model
from mobilenet_exp.models.layers_v4 import LayerScale
from mobilenet_exp.models.profiling import Profile, profile_model
from mobilenet_exp.papers.comparison import Comparison, compare
from mobilenet_exp.weights.load import load_exported, load_run
from mobilenet_exp.weights.runtime_files import FileModel, is_exported, open_file, runtime_of

TORCHVISION, TIMM = "torchvision:", "timm:"
CHECKPOINT_ENDINGS = (".pt", ".pth", ".tar")
NUM_CLASSES = 1000
# from whose values random networks get BatchNorm's statistics
BATCHNORM_IMAGES = 8
# what an entry of `models` may say beside its name, of all networks and of ours alone
SIDE = "resolution"
OPTIONS = tuple(entry.name for entry in fields(ModelConfig) if entry.name != "name")


@dataclass(frozen=True)
class Net:
    """A network in eval mode on the CPU, with random weights unless a run's.

    `name` is its entry in `models`; `side` is that of its input in pixels; `top1` is its
    published ImageNet top-1 at that side, in percent, None where there is none;
    `own_runtime` is the one that an exported file runs in, whatever `runtimes` says; `is_random`
    whether its weights are.
    """

    title: str
    name: str
    model: nn.Module
    side: int
    profile: Profile
    top1: float | None = None
    own_runtime: str | None = None
    is_random: bool = False


def build_nets(entries: Sequence[str | Mapping[str, Any]], resolution: int) -> list[Net]:
    """Build what `models` names, in its order. Raises InputError for what is not known."""
    nets = [_build(entry, resolution) for entry in entries]
    titles = [net.title for net in nets]
    for title in titles:
        if titles.count(title) > 1:
            raise InputError("models", title, "is named twice")
    return nets


def _build(entry: str | Mapping[str, Any], resolution: int) -> Net:
    options = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise InputError("models", entry, "needs a name, as {name: v3_small, width_mult: 0.5}")
    asked = options.pop(SIDE, None)
    if asked is not None and not isinstance(asked, int):
        raise InputError("models", name, f"{SIDE}: {asked} is no whole number of pixels")
    ranges.SIDE.check(SIDE, asked)
    side, top1, is_random = asked or resolution, None, True
    if is_exported(name):
        return _of_file(name, options, asked, resolution)
    if name.startswith((TORCHVISION, TIMM)) or name.endswith(CHECKPOINT_ENDINGS):
        if options:
            problem = f"{next(iter(options))} is for our own networks; here {SIDE} alone"
            raise InputError("models", name, problem)
        if ":" in name:
            model, top1 = _peer(name, side)
        else:
            loaded = load_run(name)
            model, side = loaded.model, asked or loaded.preprocessing.resolution
            is_random = False
    else:
        config = _config(name, options)
        model = config_model(config, config.num_classes or NUM_CLASSES)
        top1 = _published_top1(config, side)
    title = " ".join([_short(name), *_options_text(options, side if side != resolution else None)])
    profile = _profile(name, model, side)
    return Net(title, name, model.eval(), side, profile, top1, is_random=is_random)


@torch.no_grad()
def warm_batchnorm(model: nn.Module, side: int) -> None:
    """Give BatchNorm the statistics of its inputs, as training would, for random weights.

    Otherwise values shrink from layer to layer until int8 rounds them to zero. V4's layer
    scales, which start near zero, have the same effect and are set to one.
    """
    for each in model.modules():
        if isinstance(each, LayerScale):
            each.gamma.fill_(1.0)
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    momenta = [each.momentum for each in norms]
    # images that differ as a whole, for what comes after pooling
    coarse = torch.randn(BATCHNORM_IMAGES, 3, 4, 4)
    images = nn.functional.interpolate(coarse, size=side) + torch.randn(len(coarse), 3, side, side)
    for each in norms:
        each.momentum = 1.0
    model.train()(images)
    model.eval()
    for each, momentum in zip(norms, momenta, strict=True):
        each.momentum = momentum


def _of_file(name: str, options: dict[str, Any], asked: int | None, resolution: int) -> Net:
    if options:
        raise InputError("models", name, f"{next(iter(options))} is fixed by the file")
    found = _of_others(name, asked, resolution) if name.endswith(".onnx") else None
    model: FileModel
    if found:
        model, side, profile = found, found.side, found.profile
    else:
        if asked:
            raise InputError("models", name, f"{SIDE} is fixed by the file")
        loaded = load_exported(name, key="models")
        side = loaded.preprocessing.resolution
        assert isinstance(loaded.model, FileModel)
        model, profile = loaded.model, loaded.profile(side)
    parts = list(_options_text({}, side if side != resolution else None))
    if found and found.at_once:
        parts.append(f"{found.at_once} at once")
    title = " ".join([_short(name), *parts])
    return Net(title, name, model, side, profile, own_runtime=runtime_of(name))


def _of_others(name: str, asked: int | None, resolution: int) -> ForeignModel | None:
    """Open an ONNX file that is not one of ours; None for one that is."""
    forward, metadata = open_file(name, "models")
    return None if metadata else open_foreign(name, forward, asked, resolution)


def _config(name: str, options: dict[str, Any]) -> ModelConfig:
    """Check the options of a network of ours as `model.*` are."""
    for key in options:
        if key not in OPTIONS:
            raise InputError("models", name, f"has no {key}; allowed: {SIDE}, {', '.join(OPTIONS)}")
    try:
        return to_part({"name": name, **options}, ModelConfig, "model")
    except InputError as error:
        problem = f"{error.key.removeprefix('model.')}: {error.value} {error.problem}"
        raise InputError("models", name, problem) from error


def _options_text(options: dict[str, Any], side: int | None) -> Iterator[str]:
    """Say what tells a network from others of its name."""
    for key, value in options.items():
        yield f"{value:g}" if key == "width_mult" else f"{key}={value}"
    if side:
        yield f"{side} px"


def _short(name: str) -> str:
    """Return a name as a table shows it: a run's checkpoint or exported file by its run."""
    path = Path(name)
    if path.parent.name in ("checkpoints", "exported"):
        return f"{path.parents[1].name}/{path.name.removesuffix('.pt')}"
    return path.name if is_exported(name) else name.removeprefix(TORCHVISION)


def _published_top1(config: ModelConfig, side: int) -> float | None:
    images = ImagesConfig(name="imagenet", resolution=side)
    found = compare(config, images, config.num_classes or NUM_CLASSES)
    return found.paper.top1 if isinstance(found, Comparison) and found.paper else None


def _peer(name: str, side: int) -> tuple[nn.Module, float | None]:
    """Build a classifier of torchvision or timm, without weights; torchvision prints top-1."""
    source, _, peer = name.partition(":")
    if source == "timm":
        if not timm.is_model(peer):
            raise InputError("models", name, "not known to timm.list_models()")
        return timm.create_model(peer, pretrained=False), None
    # classifiers only: detectors would fetch a backbone's weights
    if peer not in models.list_models(module=models):
        raise InputError("models", name, "not a classifier of torchvision.models.list_models()")
    weights = models.get_model_weights(peer).DEFAULT
    (scored_at,) = weights.transforms().crop_size
    top1 = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] if side == scored_at else None
    return models.get_model(peer, weights=None), top1


def _profile(name: str, model: nn.Module, side: int) -> Profile:
    try:
        return profile_model(model, side)
    except (RuntimeError, AssertionError, ValueError) as error:
        problem = f"{name} does not take it: {first_line(error)}"
        raise InputError("resolution", side, problem) from error
