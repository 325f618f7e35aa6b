"""What other codes call our modules: one function per code base, block by block.

Each takes a network, and the keys of a file where a code's versions differ, and returns
our name of every module that holds tensors beside theirs.
"""

import re
from collections.abc import Iterator

from torch import nn

from mobilenet_exp.models.layers import ConvBNAct, DepthwiseSeparable, FusedResidual
from mobilenet_exp.models.layers_v4 import MultiQueryAttention, UniversalBottleneck
from mobilenet_exp.models.network import MobileNet

# our module to their name of it
Names = dict[str, str]
Keys = set[str]

# blocks in each of timm's stages; a pair of convolutions counts as one
TIMM_STAGES = {
    "v1": (1, 2, 2, 6, 2),
    "v2": (1, 2, 3, 4, 3, 3, 1),
    "v3_large": (1, 2, 3, 4, 2, 3),
    "v3_large_minimalistic": (1, 2, 3, 4, 2, 3),
    "v3_small": (1, 2, 3, 2, 3),
    "v3_small_minimalistic": (1, 2, 3, 2, 3),
    "v3_edgetpu": (1, 4, 4, 4, 4, 4, 1),
    "v4_conv_small": (1, 1, 6, 6),
    "v4_conv_medium": (1, 2, 8, 11),
    "v4_conv_large": (1, 2, 11, 13),
    "v4_hybrid_medium": (1, 2, 12, 16),
    "v4_hybrid_large": (1, 2, 15, 18),
}


def _unit(ours: str, conv: str, bn: str) -> Names:
    return {f"{ours}.conv": conv, f"{ours}.bn": bn}


def _has(block: nn.Module, part: str) -> bool:
    return not isinstance(getattr(block, part, nn.Identity()), nn.Identity)


def _blocks(model: MobileNet) -> Iterator[tuple[int, str, nn.Module]]:
    """Yield number from 1, our name and module of each block."""
    for index, block in enumerate(model.blocks):
        yield index + 1, f"blocks.{index}", block


def _parts(block: nn.Module) -> list[str]:
    """Return an inverted residual's parts in the order in which they run."""
    return [part for part in ("expand", "depthwise", "se", "project") if _has(block, part)]


def own(model: MobileNet, keys: Keys) -> Names:
    return {
        name: name
        for name, module in model.named_modules()
        if [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    }


def torchvision_v2(model: MobileNet, keys: Keys) -> Names:
    names = _unit("stem", "features.0.0", "features.0.1")
    for number, ours, block in _blocks(model):
        theirs = f"features.{number}.conv"
        *gated, project = _parts(block)
        for index, part in enumerate(gated):
            names |= _unit(f"{ours}.{part}", f"{theirs}.{index}.0", f"{theirs}.{index}.1")
        names |= _unit(f"{ours}.{project}", f"{theirs}.{len(gated)}", f"{theirs}.{len(gated) + 1}")
    last = f"features.{len(model.blocks) + 1}"
    return names | _unit("last_conv", f"{last}.0", f"{last}.1") | {"classifier": "classifier.1"}


def torchvision_v3(model: MobileNet, keys: Keys) -> Names:
    names = _unit("stem", "features.0.0", "features.0.1")
    for number, ours, block in _blocks(model):
        for index, part in enumerate(_parts(block)):
            theirs = f"features.{number}.block.{index}"
            if part == "se":
                names |= {
                    f"{ours}.se.reduce": f"{theirs}.fc1",
                    f"{ours}.se.expand": f"{theirs}.fc2",
                }
            else:
                names |= _unit(f"{ours}.{part}", f"{theirs}.0", f"{theirs}.1")
    last = f"features.{len(model.blocks) + 1}"
    names |= _unit("last_conv", f"{last}.0", f"{last}.1")
    return names | {"hidden": "classifier.0", "classifier": "classifier.3"}


def timm(model: MobileNet, keys: Keys) -> Names:
    names = _unit("stem", "conv_stem", "bn1") | {"classifier": "classifier"}
    stages = TIMM_STAGES[model.name]
    places = [(stage, index) for stage, size in enumerate(stages) for index in range(size)]
    for (stage, index), (_, ours, block) in zip(places, _blocks(model), strict=True):
        names |= _timm_block(block, ours, f"blocks.{stage}", index)
    if _has(model, "hidden"):
        # V3 and V4: the last convolution is a stage of its own
        names |= _unit("last_conv", f"blocks.{len(stages)}.0.conv", f"blocks.{len(stages)}.0.bn1")
        is_v4 = isinstance(model.hidden, ConvBNAct)
        names |= _unit("hidden", "conv_head", "norm_head") if is_v4 else {"hidden": "conv_head"}
    elif _has(model, "last_conv"):
        names |= _unit("last_conv", "conv_head", "bn2")
    return names


def _timm_block(block: nn.Module, ours: str, stage: str, index: int) -> Names:
    theirs = f"{stage}.{index}"
    if isinstance(block, ConvBNAct):
        return _unit(ours, f"{theirs}.conv", f"{theirs}.bn1")
    if isinstance(block, FusedResidual) and _has(block.project, "act"):
        expand, project = f"{stage}.0", f"{stage}.1"
        return _unit(f"{ours}.expand", f"{expand}.conv", f"{expand}.bn1") | _unit(
            f"{ours}.project", f"{project}.conv", f"{project}.bn1"
        )
    if isinstance(block, UniversalBottleneck):
        return _timm_universal(block, ours, theirs)
    if isinstance(block, MultiQueryAttention):
        return _timm_attention(block, ours, theirs)
    if isinstance(block, DepthwiseSeparable):
        parts = {"depthwise": "conv_dw", "pointwise": "conv_pw"}
    elif isinstance(block, FusedResidual):
        parts = {"expand": "conv_exp", "project": "conv_pwl"}
    elif _has(block, "expand"):
        parts = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
    else:
        parts = {"depthwise": "conv_dw", "project": "conv_pw"}
    names: Names = {}
    for number, (part, conv) in enumerate(parts.items(), 1):
        names |= _unit(f"{ours}.{part}", f"{theirs}.{conv}", f"{theirs}.bn{number}")
    if _has(block, "se"):
        names[f"{ours}.se.reduce"] = f"{theirs}.se.conv_reduce"
        names[f"{ours}.se.expand"] = f"{theirs}.se.conv_expand"
    return names


def _timm_universal(block: nn.Module, ours: str, theirs: str) -> Names:
    parts = {"start": "dw_start", "expand": "pw_exp", "depthwise": "dw_mid", "project": "pw_proj"}
    names: Names = {}
    for part, name in parts.items():
        if _has(block, part):
            names |= _unit(f"{ours}.{part}", f"{theirs}.{name}.conv", f"{theirs}.{name}.bn")
    if _has(block, "layer_scale"):
        names[f"{ours}.layer_scale"] = f"{theirs}.layer_scale"
    return names


def _timm_attention(block: nn.Module, ours: str, theirs: str) -> Names:
    names = {f"{ours}.bn": f"{theirs}.norm", f"{ours}.layer_scale": f"{theirs}.layer_scale"}
    for part in ("query", "key", "value", "output"):
        names[f"{ours}.{part}"] = f"{theirs}.attn.{part}.proj"
        if _has(block, f"{part}_down"):
            down = f"{theirs}.attn.{part}"
            names |= _unit(f"{ours}.{part}_down", f"{down}.down_conv", f"{down}.norm")
    return names


def marvis(model: MobileNet, keys: Keys) -> Names:
    names = _unit("stem", "model.0.0", "model.0.1") | {"classifier": "fc"}
    for number, ours, _ in _blocks(model):
        names |= _unit(f"{ours}.depthwise", f"model.{number}.0", f"model.{number}.1")
        names |= _unit(f"{ours}.pointwise", f"model.{number}.3", f"model.{number}.4")
    return names


def _flat_blocks(model: MobileNet) -> Names:
    """One flat list per block: convolution, BN, activation, ..., squeeze-excite in its place."""
    names = _unit("stem", "features.0.0", "features.0.1")
    has_se = any(_has(block, "se") for block in model.blocks)
    for number, ours, block in _blocks(model):
        theirs, index = f"features.{number}.conv", 0
        for part in ("expand", "depthwise"):
            if _has(block, part):
                names |= _unit(f"{ours}.{part}", f"{theirs}.{index}", f"{theirs}.{index + 1}")
                index += 3
        if _has(block, "se"):
            # before the activation where the block expands, else after it
            place = f"{theirs}.{index - 1 if _has(block, 'expand') else index}"
            names |= {f"{ours}.se.reduce": f"{place}.fc.0", f"{ours}.se.expand": f"{place}.fc.2"}
        # V3's lists keep a place for squeeze-excite in every block
        index += has_se
        names |= _unit(f"{ours}.project", f"{theirs}.{index}", f"{theirs}.{index + 1}")
    return names


def tonylins(model: MobileNet, keys: Keys) -> Names:
    last = f"features.{len(model.blocks) + 1}"
    names = _flat_blocks(model) | _unit("last_conv", f"{last}.0", f"{last}.1")
    # before commit 99f2136 the classifier stood behind a dropout
    return names | {"classifier": "classifier.1" if "classifier.1.weight" in keys else "classifier"}


def d_li14_v2(model: MobileNet, keys: Keys) -> Names:
    last = _unit("last_conv", "conv.0", "conv.1")
    return _flat_blocks(model) | last | {"classifier": "classifier"}


def d_li14_v3(model: MobileNet, keys: Keys) -> Names:
    last = _unit("last_conv", "conv.0", "conv.1")
    # files of the author's earlier commits have 1 and 5, or 0 and 2
    hidden, classifier = numbers_in(keys, "classifier") or (0, 3)
    return (
        _flat_blocks(model)
        | last
        | {"hidden": f"classifier.{hidden}", "classifier": f"classifier.{classifier}"}
    )


def numbers_in(keys: Keys, name: str) -> list[int]:
    """Return the numbers of a sequence's layers with weights, as 0 and 3 of `classifier`."""
    found = (re.fullmatch(rf"{name}\.(\d+)\.weight", key) for key in keys)
    return sorted(int(match[1]) for match in found if match)


def kuan_wang(model: MobileNet, keys: Keys) -> Names:
    last = len(model.blocks) + 1
    names = _flat_blocks(model) | _unit("last_conv", f"features.{last}.0", f"features.{last}.1")
    return names | {"hidden": f"features.{last + 2}", "classifier": "classifier.1"}
