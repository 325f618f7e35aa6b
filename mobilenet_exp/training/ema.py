"""A running average of weights and BatchNorm statistics, by timm. Knows no loop."""

from timm.utils import ModelEmaV3
from torch import Tensor, nn


class Average:
    """The exponential moving average of a network's whole state.

    `decay` is the share that stays at each step; with `warmup` it rises from 0 towards
    it, so that a short run's average does not remember the initial weights. A step is
    made every `every` updates.
    """

    def __init__(self, model: nn.Module, *, decay: float, every: int, warmup: bool) -> None:
        self.every = every
        self._ema = ModelEmaV3(model, decay=decay, use_warmup=warmup)

    @property
    def model(self) -> nn.Module:
        """Return the network with averaged weights, in eval mode."""
        return self._ema.module

    def update(self, model: nn.Module, step: int) -> None:
        """Add the weights after update number `step`, counted from 0, to the average."""
        if (step + 1) % self.every == 0:
            self._ema.update(model, step=(step + 1) // self.every)

    def state_dict(self) -> dict[str, Tensor]:
        return self._ema.module.state_dict()
