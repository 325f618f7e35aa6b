"""Devices, threads, precision, and the layout of memory."""

import pytest
import torch

from mobilenet_exp.config.schema import RunConfig
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.machine.compute import (
    Compute,
    Precision,
    autocast,
    select_compute,
    select_precision,
    set_tf32,
)

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)


def test_precision_is_float32_but_for_training_on_cuda():
    for half in (True, False):
        assert select_precision("auto", CPU, half=half) is Precision.FLOAT32
        assert select_precision("bfloat16", CPU, half=half) is Precision.BFLOAT16
    assert select_precision("auto", CUDA, half=True) is Precision.BFLOAT16
    assert select_precision("auto", CUDA, half=False) is Precision.FLOAT32
    assert select_precision("float32", CUDA, half=True) is Precision.FLOAT32


def test_a_gpu_that_only_emulates_bfloat16_trains_in_float16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert select_precision("auto", CUDA, half=True) is Precision.FLOAT16
    assert select_precision("bfloat16", CUDA, half=True) is Precision.BFLOAT16


def test_tf32_is_for_cuda_alone():
    assert select_precision("tf32", CUDA, half=True) is Precision.TF32
    with pytest.raises(InputError, match="run.precision=tf32: only CUDA devices have it, not cpu"):
        select_precision("tf32", CPU, half=True)


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


@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [
        ("auto", CUDA, torch.channels_last),
        ("auto", CPU, torch.channels_last),
        ("auto", MPS, torch.contiguous_format),
        ("channels_last", MPS, torch.channels_last),
        ("contiguous", CPU, torch.contiguous_format),
    ],
)
def test_memory_is_channels_last_but_on_mps(monkeypatch, asked, device, expected):
    for backend in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: True)
    run = RunConfig(device=device.type, memory_format=asked)
    assert select_compute(run, half=False).memory_format is expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_autocast_is_bf16_on_cuda():
    found = select_compute(RunConfig(), half=True)
    with autocast(found.device, found.precision):
        ones = torch.ones(2, 2, device=found.device)
        assert (ones @ ones).dtype == torch.bfloat16


def test_device_auto_is_there_and_an_absent_one_is_refused():
    assert select_compute(RunConfig(), half=True).device.type in ("cpu", "cuda", "mps")
    assert select_compute(RunConfig(device="cpu"), half=True).device == CPU
    absent = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(InputError, match=f"run.device={absent}: not on this machine, which"):
        select_compute(RunConfig(device=absent), half=True)


def test_a_device_is_described_with_its_threads():
    torch.set_num_threads(1)
    assert Compute(CPU).describe() == "cpu, float32, 1 thread"
    assert Compute(CPU, Precision.BFLOAT16).describe(2) == "2 x cpu, bfloat16, 1 thread each"
    assert Compute(CUDA, Precision.BFLOAT16).describe(8) == "8 x cuda, bfloat16"
