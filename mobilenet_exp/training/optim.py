"""Optimizers by name, and the parameter groups they get.

A builder's keyword-only arguments are the keys of `optimizer.args`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.registry import Registry

OPTIMIZERS: Registry = Registry("optimizer.name")
# of a parameter group: by which of torch's implementations it is updated
HOW = ("fused", "foreach", "capturable")


@OPTIMIZERS.register("sgd")
def sgd(
    groups: list[dict], lr: float, *, momentum: float = 0.9, nesterov: bool = False
) -> Optimizer:
    """Stochastic gradient descent with momentum.

    Not by torch's fused kernel: where float16 overflows in its first update, that keeps
    momentum which was never written.
    """
    return torch.optim.SGD(groups, lr, momentum=momentum, nesterov=nesterov)


@OPTIMIZERS.register("rmsprop")
def rmsprop(
    groups: list[dict], lr: float, *, alpha: float = 0.9, eps: float = 1e-3, momentum: float = 0.9
) -> Optimizer:
    """TensorFlow's RMSprop, the rule of the papers: average from one, epsilon in the root."""
    from timm.optim import RMSpropTF

    return RMSpropTF(groups, lr, alpha=alpha, eps=eps, momentum=momentum)


@OPTIMIZERS.register("rmsprop_torch")
def rmsprop_torch(
    groups: list[dict], lr: float, *, alpha: float = 0.9, eps: float = 0.0316, momentum: float = 0.9
) -> Optimizer:
    """PyTorch's RMSprop: average from zero, epsilon outside the root."""
    return torch.optim.RMSprop(groups, lr, alpha=alpha, eps=eps, momentum=momentum)


@OPTIMIZERS.register("adamw")
def adamw(
    groups: list[dict], lr: float, *, betas: list[float] | None = None, eps: float = 1e-8
) -> Optimizer:
    """Adam with decoupled weight decay."""
    return torch.optim.AdamW(groups, lr, betas=_pair(betas), eps=eps, fused=_is_on_cuda(groups))


@OPTIMIZERS.register("lamb")
def lamb(
    groups: list[dict], lr: float, *, betas: list[float] | None = None, eps: float = 1e-6
) -> Optimizer:
    """Adam whose step in each tensor follows the tensor's norm (You et al., arXiv:1904.00962)."""
    from timm.optim import Lamb

    # its own clipping of all gradients is `clip_grad_norm` here
    return Lamb(groups, lr, betas=_pair(betas), eps=eps, max_grad_norm=None)


def _is_on_cuda(groups: list[dict]) -> bool | None:
    """Return whether one kernel may update all weights; None: torch and timm use lists of them.

    On a CPU it is no faster, and rounds in another order.
    """
    return True if groups[0]["params"][0].device.type == "cuda" else None


def _pair(betas: list[float] | None) -> tuple[float, float]:
    betas = [0.9, 0.999] if betas is None else betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers in [0, 1), not {list(betas)}")
    return betas[0], betas[1]


def build_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    weight_decay: float,
    decay_norm_and_bias: bool = False,
    decay_depthwise: bool = True,
    args: dict[str, object] | None = None,
) -> Optimizer:
    """Build the optimizer over those of `model`'s parameters that learn.

    Unless `decay_norm_and_bias`, weight decay spares every one-dimensional parameter:
    biases and normalisation; unless `decay_depthwise`, the filters of depthwise
    convolutions. Raises InputError for an unknown name or argument.
    """
    args = args or {}
    OPTIMIZERS.check_options(name, args, "optimizer.args")
    depthwise = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
    }
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        is_spared = (parameter.ndim <= 1 and not decay_norm_and_bias) or (
            id(parameter) in depthwise and not decay_depthwise
        )
        (spared if is_spared else decayed).append(parameter)
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((decayed, weight_decay), (spared, 0.0))
        if params
    ]
    try:
        return OPTIMIZERS.get(name)(groups, lr, **args)
    except (TypeError, ValueError) as error:
        raise InputError("optimizer.args", args, f"not accepted by {name}: {error}") from error


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a state into an optimizer that goes on computing as it was built.

    The state may be another device's or another memory layout's.
    """
    groups = [
        saved | {key: own[key] for key in HOW if key in own}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=False)
    ]
    groups += state["param_groups"][len(groups) :]
    optimizer.load_state_dict(state | {"param_groups": groups})
    for weight, kept in optimizer.state.items():
        for key, value in kept.items():
            # fused kernels want the weight's own layout
            if isinstance(value, Tensor) and value.shape == weight.shape:
                kept[key] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
