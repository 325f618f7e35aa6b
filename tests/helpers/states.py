"""A training's state made by hand, for tests of single updates; and crashes at a given place."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mobilenet_exp import compose
from mobilenet_exp.machine.compute import Compute
from mobilenet_exp.machine.distributed import World
from mobilenet_exp.training import step
from mobilenet_exp.training.checkpointing import Checkpointer
from mobilenet_exp.training.state import TrainState


def bare_state(model: nn.Module, *words: str, compute: Compute | None = None, **options):
    """Return a state of `model` without data: SGD at a constant rate of 0.05."""
    compute = compute or Compute(torch.device("cpu"))
    common = {
        "optimizer": torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9),
        "lr_at": lambda step: 0.05,
        "loss_fn": nn.CrossEntropyLoss(),
    }
    loaders = SimpleNamespace(sampler=SimpleNamespace(num_updates=1_000_000))
    return TrainState(
        compose(*words), compute, World(), loaders, 10, model, model, **common | options
    )


def make_updates(state: TrainState, batches: list) -> None:
    """Make an update from each batch, or from each tuple of parts of one."""
    step.set_training_mode(state)
    for parts in batches:
        step.update(state, parts)
        state.progress.update += 1


@contextmanager
def crash_before_saving(epoch: int):
    """Crash where an epoch is logged and about to be saved."""
    save = Checkpointer.save

    def crash(checkpointer, **options):
        if checkpointer.state.progress.epoch == epoch:
            raise RuntimeError("power cut")
        save(checkpointer, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpointer, "save", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            yield
