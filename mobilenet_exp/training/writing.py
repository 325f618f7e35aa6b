"""Files written by a thread while training goes on. Knows no checkpoint."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Writer:
    """Does one task at a time in a thread that the process waits for before it ends."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def has_failed(self) -> bool:
        """Return whether `join` would raise."""
        return self._error is not None

    def start(self, task: Callable[[], None]) -> None:
        """Begin a task once the one before is done; raises what that one raised."""
        self.join()
        self._thread = threading.Thread(target=self._do, args=(task,), name="writer")
        self._thread.start()

    def wait(self) -> None:
        """Wait for the task."""
        if self._thread:
            self._thread.join()
            self._thread = None

    def join(self) -> None:
        """Wait for the task; raises what it raised."""
        self.wait()
        error, self._error = self._error, None
        if error:
            raise error

    def _do(self, task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            self._error = error


def host_copy(value: Any) -> Any:
    """Return plain containers with their tensors copied to this machine's memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True, memory_format=torch.preserve_format)
    if isinstance(value, dict):
        return type(value)((key, host_copy(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return type(value)(map(host_copy, value))
    return value
