"""Precision, and the layout of memory."""

import pytest
import torch

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.machine.arithmetic import (
    Precision,
    autocast,
    memory_format,
    select_precision,
    set_tf32,
)
from mobilenet_exp.machine.device import select_device

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)


def test_precision_is_float32_but_for_training_on_cuda():
    for is_training in (True, False):
        assert select_precision("auto", CPU, is_training=is_training) is Precision.FLOAT32
        assert select_precision("bfloat16", CPU, is_training=is_training) is Precision.BFLOAT16
    assert select_precision("auto", CUDA, is_training=True) is Precision.BFLOAT16
    assert select_precision("auto", CUDA, is_training=False) is Precision.FLOAT32
    assert select_precision("float32", CUDA, is_training=True) is Precision.FLOAT32


def test_a_gpu_that_only_emulates_bfloat16_trains_in_float16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert select_precision("auto", CUDA, is_training=True) is Precision.FLOAT16
    assert select_precision("bfloat16", CUDA, is_training=True) is Precision.BFLOAT16


def test_tf32_is_for_cuda_alone():
    assert select_precision("tf32", CUDA, is_training=True) is Precision.TF32
    with pytest.raises(InputError, match="run.precision=tf32: only CUDA devices have it, not cpu"):
        select_precision("tf32", CPU, is_training=True)


def test_float32_is_not_rounded_unless_asked():
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    kept = [each.allow_tf32 for each in flags]
    try:
        for precision in (Precision.TF32, Precision.FLOAT32):
            set_tf32(precision)
            assert {each.allow_tf32 for each in flags} == {precision is Precision.TF32}
    finally:
        for each, value in zip(flags, kept, strict=True):
            each.allow_tf32 = value


@pytest.mark.parametrize("precision", Precision)
def test_autocast_computes_in_the_precision(precision):
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == precision.dtype


def test_memory_is_channels_last_but_on_mps():
    assert memory_format("auto", CUDA) is memory_format("auto", CPU) is torch.channels_last
    assert memory_format("auto", MPS) is torch.contiguous_format
    assert memory_format("channels_last", MPS) is torch.channels_last
    assert memory_format("contiguous", CPU) is torch.contiguous_format


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_autocast_is_bf16_on_cuda():
    device = select_device("auto")
    with autocast(device, select_precision("auto", device, is_training=True)):
        ones = torch.ones(2, 2, device=device)
        assert (ones @ ones).dtype == torch.bfloat16
