"""Networks by name: `build_model` and `list_models`.

Importing this module registers the families; it needs torch.
"""

import inspect
from dataclasses import asdict
from typing import Any

from torch import nn

from mobilenet_exp.config.schema import ModelConfig
from mobilenet_exp.core.errors import InputError

# registers the builders, in the order of list_models
# isort: off
from mobilenet_exp.models import v1, v2, v3, v3_edgetpu, kuanwang_v3, v4, peers  # noqa: F401

# isort: on
from mobilenet_exp.models.network import MODELS, RANGES, set_stochastic_depth

# The only values allowed for options that a builder does not take.
DEFAULTS = {"width_mult": 1.0, "dropout": None, "bn_eps": None, "bn_momentum": None}
# Options and the values at which they change nothing.
NEUTRAL = {"activation": None, "width_rule": "paper", "hswish": "table", "head_width": None}


def build_model(
    name: str,
    *,
    width_mult: float = 1.0,
    num_classes: int = 1000,
    dropout: float | None = None,
    stem_stride: int = 2,
    bn_eps: float | None = None,
    bn_momentum: float | None = None,
    stochastic_depth: float = 0.0,
    **args: object,
) -> nn.Module:
    """Build a network by registry name: images (N, 3, H, W), H and W >= 32, to logits.

    `width_mult` > 0 is the paper's alpha; `dropout` in [0, 1), `bn_eps` and
    `bn_momentum` (PyTorch's sense) are the paper's where None; `stem_stride=1` keeps
    small images from shrinking away. `stochastic_depth` is the last block's probability
    of dropping its branch in training. `args` are the family's own options, e.g.
    `activation="relu6"` for v1, `head_width=1280` for v3_small.

    A user's own builder may return any module. It gets those of these options that are among
    its parameters; `stem_stride` has no effect if it is not. Raises InputError for an
    unknown name or option, for one that the builder does not take, and for a value out of range.
    """
    MODELS.check_options(name, args, "model.args")
    builder = MODELS.get(name)
    options: dict[str, Any] = {
        "width_mult": width_mult,
        "num_classes": num_classes,
        "dropout": dropout,
        "stem_stride": stem_stride,
        "bn_eps": bn_eps,
        "bn_momentum": bn_momentum,
        "stochastic_depth": stochastic_depth,
    }
    for key, value in options.items():
        RANGES[key].check(f"model.{key}", value)
    parameters = inspect.signature(builder).parameters
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    taken = {key for key in options if key in parameters}
    if takes_all:
        taken |= options.keys() - {"stochastic_depth"}
    model = builder(**{key: options[key] for key in taken}, **args)
    for key in options.keys() - taken - {"num_classes", "stem_stride", "stochastic_depth"}:
        if options[key] != DEFAULTS[key]:
            raise InputError(f"model.{key}", options[key], f"is not an option of {name}")
    if stochastic_depth and "stochastic_depth" not in taken:
        set_stochastic_depth(model, name, stochastic_depth)
    model.name, model.width_mult, model.args = name, width_mult, args
    if not hasattr(model, "num_classes"):
        model.num_classes = num_classes
    return model


def config_model(config: ModelConfig, num_classes: int, *, stem_stride: int = 2) -> nn.Module:
    """Build the network that a config asks for, on the CPU.

    `stem_stride` is used where the config leaves it open.
    """
    options = asdict(config) | {"num_classes": num_classes}
    options["stem_stride"] = config.stem_stride or stem_stride
    args = options.pop("args")
    return build_model(**options, **args)


def list_models() -> list[str]:
    """Return the registry names, oldest generation first; not `timm`, which stands for many."""
    return [name for name in MODELS.names() if name != "timm"]


def nondefault_options(args: dict[str, object]) -> dict[str, object]:
    """Return the options that change the network; those at a neutral value are left out."""
    return {
        key: value for key, value in args.items() if key not in NEUTRAL or NEUTRAL[key] != value
    }
