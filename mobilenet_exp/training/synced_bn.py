"""BatchNorm over the images of all processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mobilenet_exp.core.errors import InputError


class _Summed(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class SyncedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the images of all processes, where torch has none: on a CPU.

    In training only; every process must bring as many images.
    """

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        count = images.numel() // images.shape[1] * dist.get_world_size()
        mean = _Summed.apply(images.sum((0, 2, 3))) / count
        centred = images - mean[:, None, None]
        var = _Summed.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            # cumulative where there is no momentum
            momentum = self.momentum or 1 / self.num_batches_tracked.item()
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * count / (count - 1), momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


def synchronise_bn(model: nn.Module, device: torch.device) -> nn.Module:
    """Let every BatchNorm see the images of all processes; weights and names stay.

    Raises InputError for a network with a BatchNorm of its own, as timm's BatchNormAct2d.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and type(module) is not nn.BatchNorm2d:
            problem = f"is not for the network's {type(module).__name__}"
            raise InputError("train.bn", "sync", problem)
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm
    return model
