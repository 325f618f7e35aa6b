"""Devices, precision and threads."""

import pytest
import torch

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.machine.device import autocast, select_device

CPU = torch.device("cpu")


def test_device_auto_is_there_and_an_absent_one_is_refused():
    assert select_device("auto").type in ("cpu", "cuda", "mps")
    assert select_device("cpu") == CPU
    absent = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(InputError, match=f"run.device={absent}: not on this machine; here: auto"):
        select_device(absent)


def test_autocast_is_off_on_the_cpu():
    with autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_autocast_is_bf16_on_cuda():
    device = select_device("auto")
    with autocast(device):
        ones = torch.ones(2, 2, device=device)
        assert (ones @ ones).dtype == torch.bfloat16
