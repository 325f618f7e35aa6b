"""Jobs of ranks that need little of the package: a rank imports what its job's module imports."""

import gc
import time
import weakref

import torch

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.machine.distributed import joined


def lives_on() -> bool:
    left = []
    for _ in range(2):
        with joined(torch.device("cpu")) as world:
            assert world.gather(world.rank) == [0, 1]
            left.append(weakref.ref(torch.distributed.group.WORLD))
    gc.collect()
    is_kept = all(group() is not None for group in left)
    return is_kept and not torch.distributed.is_initialized()


def dies() -> None:
    time.sleep(0.1)
    raise SystemExit(9)


def refuses() -> None:
    raise InputError("data.root", "nowhere", "no folder")
