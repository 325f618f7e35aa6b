"""Devices, precision and threads."""

import pytest
import torch

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.machine.device import (
    autocast,
    describe_device,
    select_device,
    select_precision,
    set_threads,
)

CPU = torch.device("cpu")


def test_device_auto_is_there_and_an_absent_one_is_refused():
    assert select_device("auto").type in ("cpu", "cuda", "mps")
    assert select_device("cpu") == CPU
    absent = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(InputError, match=f"run.device={absent}: not on this machine, which"):
        select_device(absent)


def test_precision_is_float32_but_for_training_on_cuda():
    cuda = torch.device("cuda")
    for is_training in (True, False):
        assert select_precision("auto", CPU, is_training=is_training) is torch.float32
        assert select_precision("bfloat16", CPU, is_training=is_training) is torch.bfloat16
    assert select_precision("auto", cuda, is_training=True) is torch.bfloat16
    assert select_precision("auto", cuda, is_training=False) is torch.float32
    assert select_precision("float32", cuda, is_training=True) is torch.float32


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_the_precision(precision):
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == precision


def test_a_device_is_described_with_its_threads():
    set_threads(1)
    assert describe_device(CPU, 1, torch.float32) == "cpu, float32, 1 thread"
    assert describe_device(CPU, 2, torch.bfloat16) == "2 x cpu, bfloat16, 1 thread each"
    assert describe_device(torch.device("cuda"), 8, torch.bfloat16) == "8 x cuda, bfloat16"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_autocast_is_bf16_on_cuda():
    device = select_device("auto")
    with autocast(device, select_precision("auto", device, is_training=True)):
        ones = torch.ones(2, 2, device=device)
        assert (ones @ ones).dtype == torch.bfloat16
