"""A running average of weights and BatchNorm statistics, by timm."""

import torch
from torch import Tensor, nn


class Average:
    """The exponential moving average of a network's whole state.

    `decay` is the fraction that stays at each step; with `warmup` it rises from 0 towards
    it, so that a short run's average does not remember the initial weights. A step is
    made every `every` updates. `model`'s tensors are kept: what is later in them counts.
    """

    def __init__(self, model: nn.Module, *, decay: float, every: int, warmup: bool) -> None:
        # timm takes more than a second to import
        from timm.utils import ModelEmaV3

        self.every = every
        self._ema = ModelEmaV3(model, decay=decay, use_warmup=warmup)
        # the tensors stay the same, whatever is in them
        pairs = list(zip(self.state_dict().values(), model.state_dict().values(), strict=True))
        self._numbers = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    @property
    def model(self) -> nn.Module:
        """Return the network with averaged weights, in eval mode."""
        return self._ema.module

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after update number `step`, counted from 0, to the average."""
        if (step + 1) % self.every:
            return
        weight = 1 - self._ema.get_decay((step + 1) // self.every)
        averages, values = zip(*self._numbers, strict=True)
        torch._foreach_lerp_(averages, values, weight=weight)
        for ours, theirs in self._counts:
            ours.copy_(theirs)

    def state_dict(self) -> dict[str, Tensor]:
        return self._ema.module.state_dict()
