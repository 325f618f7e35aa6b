"""Learning-rate schedules as pure functions.

A schedule maps the progress in epochs (a float, set at every step) to a factor of the
base rate; a resumed run needs the step counter and nothing else.
"""

import math
import random
from collections.abc import Callable
from typing import Annotated, Any

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.core.ranges import ABOVE_0, ABOVE_0_TO_1, FRACTION
from mobilenet_exp.core.registry import Registry

SCHEDULES: Registry = Registry("schedule.name")

# an option's type carries its range
Epochs = Annotated[float, ABOVE_0]
Decay = Annotated[float, ABOVE_0_TO_1]


@SCHEDULES.register("cosine")
def cosine(epoch: float, epochs: float, *, final_factor: Annotated[float, FRACTION] = 0.0) -> float:
    """Half a cosine from 1 at epoch 0 to `final_factor` at the end."""
    return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * epoch / epochs)) / 2


@SCHEDULES.register("step")
def step(epoch: float, epochs: float, *, every_epochs: Epochs, gamma: Decay) -> float:
    """`gamma` to the number of whole `every_epochs` that have passed."""
    return gamma ** math.floor(epoch / every_epochs)


@SCHEDULES.register("exponential")
def exponential(epoch: float, epochs: float, *, every_epochs: Epochs, gamma: Decay) -> float:
    """`gamma` to the number of `every_epochs` that have passed, fractions included."""
    return gamma ** (epoch / every_epochs)


@SCHEDULES.register("constant")
def constant(epoch: float, epochs: float) -> float:
    """1 throughout."""
    return 1.0


def build_schedule(
    name: str,
    *,
    lr: float,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0.0,
    warmup_from: float = 0.0,
    counts_warmup: bool = False,
    cooldown_epochs: float = 0.0,
    noise: list[float] | None = None,
    seed: int = 0,
    args: dict[str, Any] | None = None,
) -> Callable[[int], float]:
    """Return `lr_at(step)`, the learning rate of an update counted from 0.

    During the warm-up the rate rises linearly from `warmup_from * lr` to `lr`; step 0 is
    never 0. The schedule itself then runs over the remaining epochs, or, with
    `counts_warmup`, continues as if it had run from the start. It ends `cooldown_epochs`
    before the training, which keeps its last rate. `noise` is explained in the schema. Raises
    InputError for an unknown name or argument, and for a warm-up and cool-down that are longer
    than the training.
    """
    schedule, args = SCHEDULES.get(name), args or {}
    SCHEDULES.check_options(name, args, "schedule.args")
    if warmup_epochs > epochs:
        problem = f"is longer than the whole training, train.epochs={epochs}"
        raise InputError("schedule.warmup_epochs", warmup_epochs, problem)
    end = epochs - cooldown_epochs
    if cooldown_epochs and end <= warmup_epochs:
        problem = f"leaves no epoch to the schedule: train.epochs={epochs}"
        raise InputError("schedule.cooldown_epochs", cooldown_epochs, problem)
    warmup_steps = warmup_epochs * steps_per_epoch
    passed = 0.0 if counts_warmup else warmup_epochs

    def lr_at(step: int) -> float:
        if step < warmup_steps:
            risen = min(1.0, (step + 1) / (warmup_steps + 1))
            return lr * (warmup_from + (1 - warmup_from) * risen)
        epoch = step / steps_per_epoch
        # a cool-down keeps the last rate, and what changes at the end does not change
        factor = schedule(min(epoch, math.nextafter(end, 0.0)) - passed, end - passed, **args)
        if noise and noise[0] <= epoch / epochs < noise[1]:
            factor *= 1 + _small_normal(seed + int(epoch))
        return lr * factor

    return lr_at


def _small_normal(seed: int) -> float:
    """Draw from N(0, 1) until the draw is within 0.67, timm's default."""
    draw = random.Random(seed)
    while abs(value := draw.gauss(0, 1)) >= 0.67:
        pass
    return value
