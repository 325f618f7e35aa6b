"""Numbers on a device that are read without waiting for its work."""

import torch
from torch import Tensor

# updates between two looks at the loss where each look waits for the device
LOOK_EVERY = 50


class Scalar:
    """A number on a device: from CUDA it is copied beside the work; elsewhere reading may wait."""

    def __init__(self, value: Tensor, device: torch.device) -> None:
        self._value, self._copied = value.detach().clone(), None
        if device.type == "cuda":
            on_host = torch.empty((), dtype=value.dtype, pin_memory=True)
            on_host.copy_(value, non_blocking=True)
            self._value, self._copied = on_host, torch.cuda.Event()
            self._copied.record()

    @property
    def has_come(self) -> bool:
        return self._copied is None or self._copied.query()

    def item(self) -> float:
        """Return it; waits for it if it has not come."""
        if self._copied:
            self._copied.synchronize()
        return self._value.item()


class LossWatch:
    """Tells whether a sum of losses is finite, if it can, without waiting for the device.

    On a CPU it tells at once. From CUDA the answer is copied beside the work, and told when
    it has come; elsewhere every LOOK_EVERY updates.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._looks = 0
        self._copied: Scalar | None = None

    def is_bad(self, loss_sum: Tensor) -> bool:
        """Return whether the sum is known not to be finite."""
        self._looks += 1
        if self.device.type not in ("cpu", "cuda") and self._looks % LOOK_EVERY:
            return False
        if self.device.type != "cuda":
            return not loss_sum.isfinite().item()
        is_bad = False
        if self._copied and self._copied.has_come:
            is_bad = not self._copied.item()
            self._copied = None
        if self._copied is None:
            self._copied = Scalar(loss_sum.isfinite(), self.device)
        return is_bad
