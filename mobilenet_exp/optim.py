"""Optimizers by name, and the parameter groups they get. Knows no schedule and no data."""

from collections.abc import Callable

import torch
from torch import nn

from mobilenet_exp.errors import InputError
from mobilenet_exp.registry import Registry

OPTIMIZERS: Registry = Registry("optimizer.name")
OPTIMIZERS.register("sgd")(torch.optim.SGD)
OPTIMIZERS.register("rmsprop_torch")(torch.optim.RMSprop)
OPTIMIZERS.register("adamw")(torch.optim.AdamW)


@OPTIMIZERS.register("rmsprop")
def rmsprop(groups: list[dict], **args: object) -> torch.optim.Optimizer:
    """TensorFlow's RMSprop, the rule of the papers: average from one, epsilon in the root."""
    from timm.optim import RMSpropTF

    return RMSpropTF(groups, **args)


def build_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    weight_decay: float,
    decay_norm_and_bias: bool = False,
    args: dict[str, object] | None = None,
) -> torch.optim.Optimizer:
    """Build the optimizer over `model`'s parameters.

    Unless `decay_norm_and_bias`, weight decay spares every one-dimensional parameter:
    biases and normalisation. Raises InputError for an unknown name or argument.
    """
    builder: Callable = OPTIMIZERS.get(name)
    decayed, spared = [], []
    for parameter in model.parameters():
        is_spared = parameter.ndim <= 1 and not decay_norm_and_bias
        (spared if is_spared else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}]
    if spared:
        groups.append({"params": spared, "weight_decay": 0.0})
    try:
        return builder(groups, lr=lr, **(args or {}))
    except (TypeError, ValueError) as error:
        raise InputError("optimizer.args", args, f"not accepted by {name}: {error}") from error
