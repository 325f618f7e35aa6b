"""Weights that torchvision and timm publish: fetched by name, and how each is evaluated.

Only `fetch` downloads; the settings of the weights come from the installed libraries.
"""

import difflib
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
import torchvision
from huggingface_hub import constants
from timm.layers import Conv2dSame
from torch import Tensor, nn

from mobilenet_exp.config.schema import Preprocessing
from mobilenet_exp.core.errors import InputError, first_line
from mobilenet_exp.models.variant import Variant

TORCHVISION = {
    "v2": "mobilenet_v2",
    "v3_large": "mobilenet_v3_large",
    "v3_small": "mobilenet_v3_small",
}
# timm's names of nets that are built here, and our name and width of them
TIMM = {
    "mobilenetv1_100": ("v1", 1.0),
    "mobilenetv1_125": ("v1", 1.25),
    "mobilenetv2_050": ("v2", 0.5),
    "mobilenetv2_100": ("v2", 1.0),
    "mobilenetv2_140": ("v2", 1.4),
    "mobilenetv3_large_100": ("v3_large", 1.0),
    "mobilenetv3_small_050": ("v3_small", 0.5),
    "mobilenetv3_small_075": ("v3_small", 0.75),
    "mobilenetv3_small_100": ("v3_small", 1.0),
    "tf_mobilenetv3_large_075": ("v3_large", 0.75),
    "tf_mobilenetv3_large_100": ("v3_large", 1.0),
    "tf_mobilenetv3_small_075": ("v3_small", 0.75),
    "tf_mobilenetv3_small_100": ("v3_small", 1.0),
    "tf_mobilenetv3_large_minimal_100": ("v3_large_minimalistic", 1.0),
    "tf_mobilenetv3_small_minimal_100": ("v3_small_minimalistic", 1.0),
    "mobilenetv4_conv_small_050": ("v4_conv_small", 0.5),
    "mobilenetv4_conv_small": ("v4_conv_small", 1.0),
    "mobilenetv4_conv_medium": ("v4_conv_medium", 1.0),
    "mobilenetv4_conv_large": ("v4_conv_large", 1.0),
    "mobilenetv4_hybrid_medium": ("v4_hybrid_medium", 1.0),
    "mobilenetv4_hybrid_large": ("v4_hybrid_large", 1.0),
}
# hashes in the names of released files, e.g. mobilenet_v2-b0353104.pth
RELEASED = re.compile(r"-([0-9a-f]{8})\.pth$")


@dataclass(frozen=True)
class Pretrained:
    """One set of published weights: its name, how it is run, how images are prepared."""

    name: str
    variant: Variant
    preprocessing: Preprocessing
    _fetch: Callable[[], dict[str, Tensor]]

    def fetch(self) -> dict[str, Tensor]:
        """Download the weights, or take them from the library's cache.

        Raises InputError if that fails.
        """
        with _fetching(self.name, "weights"):
            return self._fetch()


@contextmanager
def _fetching(name: str, key: str) -> Iterator[None]:
    """Raise an InputError for any error of a download, without a long wait."""
    try:
        with _quickly():
            yield
    except Exception as error:
        # the libraries raise urllib's, requests', huggingface_hub's and their own
        raise InputError(key, name, f"could not be fetched: {first_line(error)}") from error


@contextmanager
def _quickly() -> Iterator[None]:
    """Use only the cache if the hub cannot be reached; else the hub is tried for a minute."""
    hub = urlsplit(constants.ENDPOINT)
    kept = constants.HF_HUB_OFFLINE
    try:
        if not getproxies():
            port = hub.port or (80 if hub.scheme == "http" else 443)
            socket.create_connection((hub.hostname or "", port), timeout=5).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = kept


def find_published(
    name: str, model_name: str, width_mult: float = 1.0, *, key: str = "weights"
) -> Pretrained:
    """Look up `torchvision:IMAGENET1K_V2` (of `model_name`) or `timm:ARCH.TAG`.

    Raises InputError, under `key`, for an unknown name and for one of another network.
    """
    library, _, rest = name.partition(":")
    if library == "torchvision":
        return _torchvision(name, rest, model_name, key)
    if library == "timm":
        return _timm(name, rest, model_name, width_mult, key)
    raise InputError(key, name, "not known; allowed: torchvision:TAG, timm:ARCH.TAG")


def find_released(sha256: str, model_name: str, width_mult: float = 1.0) -> Pretrained | None:
    """Find published weights by the content of a file: releases carry its hash in their name."""
    for prefix, name in _released_hashes(model_name).items():
        if sha256.startswith(prefix):
            return find_published(name, model_name, width_mult)
    return None


def _torchvision(name: str, tag: str, model_name: str, key: str) -> Pretrained:
    if model_name not in TORCHVISION:
        problem = f"torchvision has {', '.join(TORCHVISION)}; not model={model_name}"
        raise InputError(key, name, problem)
    arch = TORCHVISION[model_name]
    tags = torchvision.models.get_model_weights(arch).__members__
    if tag not in tags:
        raise InputError(key, name, f"not known for {model_name}; allowed: {', '.join(tags)}")
    weights = tags[tag]
    recipe = weights.transforms()
    with torch.device("meta"):
        net = torchvision.models.get_model(arch, weights=None)
    return Pretrained(
        name,
        _variant(net),
        Preprocessing(
            resolution=recipe.crop_size[0],
            crop_pct=recipe.crop_size[0] / recipe.resize_size[0],
            interpolation=recipe.interpolation.value,
            mean=list(recipe.mean),
            std=list(recipe.std),
        ),
        lambda: weights.get_state_dict(progress=True, check_hash=True),
    )


def _timm(name: str, arch: str, model_name: str, width_mult: float, key: str) -> Pretrained:
    known = timm.list_pretrained("*mobilenet*")
    if arch not in known:
        if "." not in arch:
            tags = [each for each in known if each.partition(".")[0] == arch]
        else:
            tags = difflib.get_close_matches(arch, known, n=3, cutoff=0.5)
        problem = f"near: {', '.join(tags)}" if tags else "timm.list_pretrained() has the names"
        raise InputError(key, name, f"not known to timm {timm.__version__}; {problem}")
    # some others, timm's blurred V4 among them, have the same tensors and are other nets
    ours = TIMM.get(arch.partition(".")[0])
    if ours is None:
        raise InputError(
            key, name, f"is for a network that is not built here; {', '.join(TIMM)} are"
        )
    if ours != (model_name, width_mult):
        needed = f"model={ours[0]} model.width_mult={ours[1]:g}"
        raise InputError(key, name, f"is for {needed}; not for {model_name} at {width_mult:g}")
    pretrained = timm.get_pretrained_cfg(arch)
    with torch.device("meta"):
        net = timm.create_model(arch, pretrained=False)
    return Pretrained(
        name,
        _variant(net),
        _timm_preprocessing(pretrained),
        lambda: timm.create_model(arch, pretrained=True).state_dict(),
    )


def _timm_preprocessing(pretrained: timm.models.PretrainedCfg) -> Preprocessing:
    return Preprocessing(
        resolution=pretrained.input_size[-1],
        crop_pct=pretrained.crop_pct,
        interpolation=pretrained.interpolation,
        mean=list(pretrained.mean),
        std=list(pretrained.std),
    )


def published_net(name: str, *, key: str) -> tuple[nn.Module, Preprocessing]:
    """Build any network of timm's with its released weights, which timm downloads.

    `name` is timm:ARCH.TAG. Raises InputError, under `key`, for a name that timm does not
    know and for weights that cannot be fetched.
    """
    arch = name.removeprefix("timm:")
    if arch not in timm.list_pretrained():
        near = difflib.get_close_matches(arch, timm.list_pretrained(), n=3, cutoff=0.5)
        problem = f"near: {', '.join(near)}" if near else "timm.list_pretrained() has the names"
        raise InputError(key, name, f"not known to timm {timm.__version__}; {problem}")
    pretrained = timm.get_pretrained_cfg(arch)
    with _fetching(name, key):
        net = timm.create_model(arch, pretrained=True)
    return net, _timm_preprocessing(pretrained)


def _variant(net: nn.Module) -> Variant:
    """Read from the library's own module how it runs its weights."""
    modules = list(net.modules())
    norm = next(module for module in modules if isinstance(module, nn.BatchNorm2d))
    is_relu6 = any(isinstance(module, nn.ReLU6) for module in modules)
    return Variant(
        bn_eps=norm.eps,
        activation="relu6" if is_relu6 else "relu",
        tf_same=any(isinstance(module, Conv2dSame) for module in modules),
    )


@cache
def _released_hashes(model_name: str) -> dict[str, str]:
    """Return the hash prefix of each released file that could be of this model, and its name."""
    found = {}
    if model_name in TORCHVISION:
        # not the aliases, such as DEFAULT
        for weights in torchvision.models.get_model_weights(TORCHVISION[model_name]):
            if match := RELEASED.search(weights.url):
                found[match[1]] = f"torchvision:{weights.name}"
    for arch in timm.list_pretrained("*mobilenet*"):
        if match := RELEASED.search(timm.get_pretrained_cfg(arch).url or ""):
            found[match[1]] = f"timm:{arch}"
    return found
