"""Layouts of published checkpoints: recognised, and translated to ours.

A layout is recognised by its keys and never by a file's name.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import mobilenet_exp.weights.key_maps as names
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.models.network import MobileNet
from mobilenet_exp.models.variant import Variant

Tensors = dict[str, Tensor]
V3 = ("v3_large", "v3_small")


@dataclass(frozen=True)
class Layout:
    """One code base's checkpoints.

    `title` is for people; `names` translates, see `key_maps`; `models` are those of ours
    that it holds; `is_of` recognises a file's keys; `bn_eps` and the rest are how that
    code runs its weights; `interpolation` is how it resizes images to evaluate.
    """

    title: str
    names: Callable[[MobileNet, set[str]], dict[str, str]]
    models: tuple[str, ...]
    is_of: Callable[[set[str]], bool]
    bn_eps: float = 1e-5
    # V1's; None: the network's own
    activation: str | None = None
    se: str = "after_act"
    interpolation: str = "bilinear"
    # the library whose published weights have this layout, as `timm:` names them
    library: str | None = None
    # width rules, as `model.args.width_rule`, whose channels the code has at every width
    width_rules: tuple[str, ...] = ("paper",)
    # whether its squeeze-excite has linear layers where ours may have 1x1 convolutions
    se_is_linear: bool = False
    # names of its modules that are 1x1 convolutions where ours may be linear
    convolutions: tuple[str, ...] = ()

    def variant(self) -> Variant:
        return Variant(bn_eps=self.bn_eps, activation=self.activation, se=self.se)


# In this order: the first one that recognises the keys is used.
LAYOUTS: dict[str, Layout] = {
    "ours": Layout("this repository", names.own, (), lambda keys: "stem.conv.weight" in keys),
    "timm": Layout(
        "timm",
        names.timm,
        tuple(names.TIMM_STAGES),
        lambda keys: "conv_stem.weight" in keys,
        activation="relu6",
        interpolation="bicubic",
        library="timm",
        width_rules=("timm",),
        convolutions=("conv_head",),
    ),
    "torchvision_v3": Layout(
        "torchvision V3",
        names.torchvision_v3,
        V3,
        lambda keys: "features.1.block.0.0.weight" in keys,
        bn_eps=1e-3,
        library="torchvision",
        width_rules=("torchvision",),
        convolutions=("fc1", "fc2"),
    ),
    "torchvision_v2": Layout(
        "torchvision V2",
        names.torchvision_v2,
        ("v2",),
        lambda keys: "features.1.conv.0.0.weight" in keys,
        library="torchvision",
    ),
    "marvis": Layout(
        "marvis V1",
        names.marvis,
        ("v1",),
        lambda keys: {"model.0.0.weight", "fc.weight"} <= keys,
        activation="relu",
    ),
    "d_li14_v3": Layout(
        "d-li14 V3",
        names.d_li14_v3,
        V3,
        lambda keys: (
            {"features.1.conv.0.weight", "conv.0.weight"} <= keys
            and len(names.numbers_in(keys, "classifier")) == 2
        ),
        se="before_act_if_expanded",
        se_is_linear=True,
    ),
    "d_li14_v2": Layout(
        "d-li14 V2",
        names.d_li14_v2,
        ("v2",),
        lambda keys: {"features.1.conv.0.weight", "conv.0.weight", "classifier.weight"} <= keys,
        width_rules=("paper", "divisor4"),
    ),
    "kuan_wang": Layout(
        "kuan-wang V3",
        names.kuan_wang,
        ("kuanwang_v3_large", "kuanwang_v3_small"),
        lambda keys: {"features.1.conv.0.weight", "features.1.conv.7.weight"} <= keys,
        se="before_act",
        se_is_linear=True,
    ),
    "tonylins": Layout(
        "tonylins V2",
        names.tonylins,
        ("v2",),
        lambda keys: {"features.1.conv.0.weight", "features.18.0.weight"} <= keys,
        width_rules=("tonylins",),
    ),
}


def recognise(keys: set[str], path: str) -> Layout:
    """Return the layout of a file's keys. Raises InputError with the first of them."""
    if layout := _layout_of(keys):
        return layout
    known = ", ".join(layout.title for layout in LAYOUTS.values())
    first = ", ".join(sorted(keys)[:3])
    raise InputError(
        "weights", path, f"unknown checkpoint layout; its first keys: {first}; known: {known}"
    )


def _layout_of(keys: set[str]) -> Layout | None:
    return next((layout for layout in LAYOUTS.values() if layout.is_of(keys)), None)


def take_net(
    tensors: Tensors, path: str, asked: str = "", name: str = ""
) -> tuple[Tensors, list[str]]:
    """Return the tensors of the network among those of a larger module, and notes.

    Trainers store a network under `model.` or `net.`, beside other modules. `asked` is such a
    prefix; `name` is the key of the tensors in the file. Tensors of no known layout are
    returned unchanged. Raises InputError if there are several networks and no `asked`, or if
    there is none under `asked`.
    """
    if not asked and _layout_of(set(tensors)):
        return tensors, []
    for depth in (1, 2, 3):
        prefixes = {".".join(key.split(".")[:depth]) for key in tensors}
        nets = {each: _under(each, tensors) for each in sorted(prefixes)}
        nets = {each: net for each, net in nets.items() if _layout_of(set(net))}
        if asked:
            nets = {each: net for each, net in nets.items() if each == asked}
        if len(nets) > 1:
            names = [f"{name}.{each}".lstrip(".") for each in nets]
            problem = f"holds {' and '.join(names)}; choose one, as weights_key={names[0]}"
            raise InputError("weights", path, problem)
        for prefix, net in nets.items():
            others = len(tensors) - len(net)
            beside = f", {others} tensors beside it left out" if others else ""
            return net, [f"prefix {prefix}. removed{beside}"]
    if asked:
        raise InputError("weights_key", asked, f"{path} has no network of a known layout there")
    return tensors, []


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {
        key.removeprefix(f"{prefix}."): value
        for key, value in tensors.items()
        if key.startswith(f"{prefix}.")
    }


def to_ours(tensors: Tensors, model: MobileNet, layout: Layout, path: str) -> Tensors:
    """Return the file's tensors under our names and in our shapes, whether or not they fit.

    Tensors that belong nowhere keep their name. Raises InputError for the wrong family.
    """
    if layout.models and model.name not in layout.models:
        held = ", ".join(layout.models)
        problem = f"has the layout of {layout.title}, for {held}; not for model={model.name}"
        raise InputError("weights", path, problem)
    theirs_to_ours = {}
    for ours, theirs in layout.names(model, set(tensors)).items():
        theirs_to_ours[theirs] = ours
    translated = {}
    own = model.state_dict()
    for key, tensor in tensors.items():
        module, _, leaf = key.rpartition(".")
        name = f"{theirs_to_ours[module]}.{leaf}" if module in theirs_to_ours else key
        if leaf == "num_batches_tracked" and tensor.is_floating_point():
            # a net that was saved in half precision: its counters are rounded, or infinite
            continue
        translated[name] = _as_shaped(tensor, own[name]) if name in own else tensor
    return translated


def _as_shaped(tensor: Tensor, like: Tensor) -> Tensor:
    """Reshape between a linear layer and a 1x1 convolution; convert float8 to float32."""
    if tensor.is_floating_point() and tensor.itemsize == 1:
        tensor = tensor.float()
    if {tensor.ndim, like.ndim} == {2, 4} and tensor.numel() == like.numel():
        kernel = tensor.shape[2:] or like.shape[2:]
        if kernel == (1, 1) and tensor.shape[:2] == like.shape[:2]:
            return tensor.reshape(like.shape)
    return tensor


def check_fit(tensors: Tensors, model: MobileNet, layout: Layout, path: str) -> None:
    """Raise InputError naming the first few tensors that do not fit.

    Missing, extra, misshapen, integers, or with values that are not finite. `tensors` are under our
    names; the message has the file's. `num_batches_tracked`, which files of PyTorch
    before 0.4.1 lack, may be missing.
    """
    own, names_of = model.state_dict(), layout.names(model, set())

    def theirs(key: str) -> str:
        module, _, leaf = key.rpartition(".")
        return f"{names_of[module]}.{leaf}"

    wanted = [key for key in own if "num_batches_tracked" not in key]
    missing = [f"{theirs(key)} {_shape(own[key])}" for key in wanted if key not in tensors]
    extra = [key for key in tensors if key not in own]
    misshapen = [
        f"{theirs(key)} {_shape(tensors[key])}, expected {_shape(own[key])}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    whole = [
        theirs(key)
        for key in own
        if key in tensors and own[key].is_floating_point() and _is_whole(tensors[key])
    ]
    broken = [
        theirs(key)
        for key in own
        if key in tensors
        and not _is_whole(tensors[key])
        and (tensors[key].is_complex() or not tensors[key].isfinite().all())
    ]
    found = [
        f"{len(keys)} {what} ({'; '.join(keys[:3])}{'; ...' if len(keys) > 3 else ''})"
        for keys, what in (
            (missing, "missing"),
            (extra, "not in this network"),
            (misshapen, "of the wrong shape"),
            (whole, "of a quantised network, integers without their scale; save the float network"),
            (broken, "with values that are not finite real numbers"),
        )
        if keys
    ]
    if found:
        width = f"{model.name} at width {model.width_mult:g}"
        head, rows = theirs("classifier.x").removesuffix("x"), tensors.get("classifier.weight")
        is_head_only = all(text.startswith(head) for text in misshapen)
        hint = ""
        if (
            is_head_only
            and rows is not None
            and rows.ndim == 2
            and not missing + extra + whole + broken
        ):
            hint = f"; model.num_classes={len(rows)} fits"
        problem = f"does not fit {width} ({layout.title}): tensors {', '.join(found)}{hint}"
        raise InputError("weights", path, problem)


def _is_whole(tensor: Tensor) -> bool:
    return tensor.is_quantized or not (tensor.is_floating_point() or tensor.is_complex())


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def fill_counters(tensors: Tensors, model: MobileNet) -> Tensors:
    """Add BN's batch counters where an old file has none."""
    own = model.state_dict()
    counters = {key: torch.zeros_like(own[key]) for key in own if "num_batches_tracked" in key}
    return counters | tensors
