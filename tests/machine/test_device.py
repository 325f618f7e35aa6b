"""Devices and threads."""

import pytest
import torch

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.machine.arithmetic import Precision
from mobilenet_exp.machine.cores import set_threads
from mobilenet_exp.machine.device import (
    describe_device,
    select_device,
)

CPU = torch.device("cpu")


def test_device_auto_is_there_and_an_absent_one_is_refused():
    assert select_device("auto").type in ("cpu", "cuda", "mps")
    assert select_device("cpu") == CPU
    absent = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(InputError, match=f"run.device={absent}: not on this machine, which"):
        select_device(absent)


def test_a_device_is_described_with_its_threads():
    set_threads(1)
    assert describe_device(CPU, 1, Precision.FLOAT32) == "cpu, float32, 1 thread"
    assert describe_device(CPU, 2, Precision.BFLOAT16) == "2 x cpu, bfloat16, 1 thread each"
    assert describe_device(torch.device("cuda"), 8, Precision.BFLOAT16) == "8 x cuda, bfloat16"
