"""Our weights written in another code's layout, for the nets that the other code has."""

from torch import Tensor

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.models.dialect import dialect_of
from mobilenet_exp.models.layers import round_to, truncate
from mobilenet_exp.models.network import MobileNet
from mobilenet_exp.weights.layouts import LAYOUTS, Layout, Tensors


def export_weights(model: MobileNet, layout: str) -> Tensors:
    """Return the network's weights as another code's state dict; it loads there strictly.

    `layout` is `torchvision` or `timm`, or another name of `LAYOUTS`. The target's own
    module, built as usual, then gives the same logits: where its BN eps is another, the
    difference goes into the running variances. Raises InputError for a network that the
    target does not have: another width rule, activation or order of operations.
    """
    name = {"v2": "torchvision_v2"}.get(model.name, "torchvision_v3")
    target = LAYOUTS.get(name if layout == "torchvision" else layout)
    if target is None:
        raise InputError("layout", layout, f"not known; allowed: torchvision, {', '.join(LAYOUTS)}")
    reason = _cannot_hold(target, model)
    if reason:
        raise InputError("layout", layout, reason)
    own = dialect_of(model)
    exported = {}
    state = model.state_dict()
    for ours, theirs in target.names(model, set()).items():
        for key in (key for key in state if key.rpartition(".")[0] == ours):
            tensor = state[key].detach().clone()
            leaf = key.rpartition(".")[2]
            if leaf == "running_var" and target.models:
                tensor += own.bn_eps - target.bn_eps
            exported[f"{theirs}.{leaf}"] = _as_written(tensor, target, theirs)
    return exported


def _as_written(tensor: Tensor, target: Layout, name: str) -> Tensor:
    """torchvision's squeeze-excite and timm's V3 head are 1x1 convolutions, the others' linear."""
    is_conv = name.endswith((".fc1", ".fc2")) or name == "conv_head"
    if target.title in ("d-li14 V3", "kuan-wang V3") and ".fc." in name:
        return tensor.flatten(1) if tensor.ndim == 4 else tensor
    return tensor[..., None, None] if is_conv and tensor.ndim == 2 else tensor


def _cannot_hold(target: Layout, model: MobileNet) -> str | None:
    """Say why the target's own module would not be this network; None if it would."""
    if not target.models:
        return None
    if model.name not in target.models:
        return f"holds {', '.join(target.models)}; not {model.name}"
    if model.stem.conv.stride != (2, 2):
        return f"{target.title} halves the image in the stem, this net does not"
    own, theirs = dialect_of(model), target.dialect()
    if own.activation and own.activation != theirs.activation:
        return f"{target.title} runs {theirs.activation}, this net {own.activation}"
    if own.tf_same or not _same_se(own.se, theirs.se, model):
        return f"{target.title} runs other operations: {theirs.words()}; this net {own.words()}"
    width, rule = model.width_mult, model.args.get("width_rule", "paper")
    if model.args.get("head_width") or model.args.get("hswish", "table") != "table":
        return f"{target.title} has the published head and activations, this net has not"
    if not _same_widths(target, model.name, width, rule):
        return f"{target.title} has other channels at width {width:g} than width_rule={rule}"
    return None


def _same_se(own: str, theirs: str, model: MobileNet) -> bool:
    # Large gates only in blocks that expand, V2 nowhere: there the two rules are one
    return (
        own == theirs
        or not any("se." in key for key in model.state_dict())
        or ({own, theirs} == {"before_act", "before_act_if_expanded"} and model.name == "v3_large")
    )


def _same_widths(target: Layout, name: str, width: float, rule: str) -> bool:
    if name == "v1" and target.title == "timm":
        channels = (32, 64, 128, 256, 512, 1024)
        return all(truncate(width * each) == round_to(width * each) for each in channels)
    if width == 1.0 or name.startswith(("v1", "v4", "seed")):
        return True
    rules = {
        "torchvision V3": ("torchvision",),
        "tonylins V2": ("tonylins",),
        "d-li14 V2": ("divisor4",) if width == 0.1 else ("paper",),
        "timm": ("timm", *(("paper",) if name == "v2" or 0.75 <= width < 1 else ())),
    }
    # timm's EdgeTPU lets its last convolution shrink
    return name != "v3_edgetpu" and rule in rules.get(target.title, ("paper",))
