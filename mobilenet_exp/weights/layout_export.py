"""Our weights written in another code's layout, for the nets that the other code has."""

from torch import Tensor, nn

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.models.build import nondefault_options
from mobilenet_exp.models.layers import ConvBNAct, InvertedResidual, round_to, truncate
from mobilenet_exp.models.network import MobileNet
from mobilenet_exp.weights.layouts import LAYOUTS, Layout, Tensors

# Models whose channels at widths other than 1.0 depend on the code.
RULES_MATTER = (
    "v2", "v3_large", "v3_small", "v3_large_minimalistic", "v3_small_minimalistic", "v3_edgetpu",
)  # fmt: skip


def export_weights(model: MobileNet, layout: str) -> Tensors:
    """Return the network's weights as another code's state dict; it loads there strictly.

    `layout` is `torchvision` or `timm`, or another name of `LAYOUTS`. The target's own
    module, built as usual, then gives the same logits: where its BN eps differs, the
    difference goes into the running variances. Raises InputError for a network that the
    target does not have: a different width rule, activation or order of operations.
    """
    if not isinstance(model, MobileNet):
        problem = f"holds this repository's own networks alone, not {model.name}"
        raise InputError("layout", layout, problem)
    name = {"v2": "torchvision_v2"}.get(model.name, "torchvision_v3")
    target = LAYOUTS.get(name if layout == "torchvision" else layout)
    if target is None:
        raise InputError("layout", layout, f"not known; allowed: torchvision, {', '.join(LAYOUTS)}")
    reason = _cannot_hold(target, model)
    if reason:
        raise InputError("layout", layout, reason)
    own = model.variant
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
    """Return a weight as a 1x1 convolution or as a linear layer, as the target has it."""
    if target.se_is_linear and ".fc." in name:
        return tensor.flatten(1) if tensor.ndim == 4 else tensor
    is_conv = name.rpartition(".")[2] in target.convolutions
    return tensor[..., None, None] if is_conv and tensor.ndim == 2 else tensor


def _cannot_hold(target: Layout, model: MobileNet) -> str | None:
    """Say why the target's own module would not be this network; None if it would."""
    if not target.models:
        return None
    if model.name not in target.models:
        return f"{target.title} has {', '.join(target.models)}; not {model.name}"
    if model.stem_stride != 2:
        return f"{target.title} halves the image in the stem, this net does not"
    own, theirs = model.variant, target.variant()
    if own.activation and own.activation != theirs.activation:
        return f"{target.title} runs {theirs.activation}, this net {own.activation}"
    if own.tf_same or not _same_se(own.se, theirs.se, model):
        described = f"{theirs.describe()}; here {own.describe()}"
        return f"{target.title} orders operations otherwise: {described}"
    options = nondefault_options(model.args)
    rule = str(options.pop("width_rule", "paper"))
    if set(options) - {"activation"}:
        return f"{target.title} has the published head and activations, this net has not"
    if not _same_widths(target, model, rule):
        width = f"{model.width_mult:g}"
        return f"{target.title} has other channels at width {width} than width_rule={rule}"
    return None


def _same_se(own: str, theirs: str, model: MobileNet) -> bool:
    """Return whether both rules gate at the same places of this network."""
    blocks = [
        isinstance(block.expand, ConvBNAct)
        for block in model.blocks
        if isinstance(block, InvertedResidual) and not isinstance(block.se, nn.Identity)
    ]
    before = {
        "after_act": lambda expands: False,
        "before_act": lambda expands: True,
        "before_act_if_expanded": lambda expands: expands,
    }
    return all(before[own](expands) == before[theirs](expands) for expands in blocks)


def _same_widths(target: Layout, model: MobileNet, rule: str) -> bool:
    """Return whether the target's module has this network's channels."""
    width = model.width_mult
    if model.name == "v1" and target.library == "timm":
        channels = (32, 64, 128, 256, 512, 1024)
        return all(truncate(width * each) == round_to(width * each) for each in channels)
    if width == 1.0 or model.name not in RULES_MATTER:
        return True
    if model.name == "v3_edgetpu":
        # timm lets its last convolution shrink
        return False
    if rule == "paper" and target.library == "timm":
        return model.name == "v2" or 0.75 <= width < 1
    if target.width_rules == ("paper", "divisor4"):
        # d-li14's V2 divides by 4 at width 0.1 alone
        return rule == ("divisor4" if width == 0.1 else "paper")
    return rule in target.width_rules
