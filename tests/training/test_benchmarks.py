"""The benchmarks of the step, at their smallest and on a CPU."""

import argparse
import statistics
import tempfile

import pytest
import torch
from torch import nn

from benchmarks import gpu, record, step
from benchmarks.traffic import bandwidth, bytes_per_image
from mobilenet_exp import build_model

CPU = torch.device("cpu")


def test_a_cell_is_measured_or_says_why_not(capsys):
    words = argparse.Namespace(
        precisions=["float32"], layouts=["channels_last"], executions=["eager", "graphs"]
    )
    task = gpu.Task("v3_small", 2, 64, CPU, updates=1)
    found = gpu.measure(task, gpu.cells(words), rounds=1)
    assert {cell.source for cell in found} == {"ours", "ours, fed", "timm"}
    for cell, each in found.items():
        if cell.execution == "graphs":
            assert each["problem"] == "run.cuda_graphs=true: needs a CUDA device"
        else:
            assert len(each["images_per_s"]) == 1
    limits = {"float32": 1e9}
    rows = gpu.rows_of(task, found, limits)
    (peer,) = (row for row in rows if row["source"] == "timm")
    assert peer["x_timm"] == 1
    assert peer["share_of_memory"] == peer["median"] / 1e9
    gpu.report(task, rows, limits)
    assert "memory allows 1,000,000,000 in float32" in capsys.readouterr().out


def test_bytes_are_those_of_each_operator_s_tensors():
    """By hand: a convolution of one pixel and a mean, forward and backward."""
    net = nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.ReLU(inplace=True), nn.Flatten())
    pixels = 8 * 8
    image, out = 4 * 3 * pixels, 4 * 5 * pixels
    # the convolution reads and writes, and backward reads two and writes none: an image needs
    # no gradient
    convolution = image + out + out + image
    # in place: read, written; backward: the gradient and the result read, the next written
    activation = 2 * out + 3 * out
    found, of_convolutions = bytes_per_image(net, 8, torch.float32)
    assert of_convolutions == convolution
    loss = found - convolution - activation
    # the loss is of 320 numbers of 4 bytes: softmax, its sum, and the way back
    assert 6 * out < loss < 9 * out


def test_half_the_bits_are_half_the_bytes():
    net = build_model("v3_small").train()
    whole, half = (bytes_per_image(net, 96, each)[0] for each in (torch.float32, torch.bfloat16))
    assert whole == pytest.approx(2 * half, rel=0.1)


def test_memory_is_as_fast_as_it_copies():
    assert 1e8 < bandwidth(CPU) < 1e12


def test_a_lever_is_measured_beside_the_others():
    title = "ours, all below on"
    found = step.measure("v3_small", {title: step.VARIANTS[title]}, 32, 2, rounds=1)
    ((seconds, _, held),) = found[title]
    assert seconds > 0
    assert held > 100


def test_what_a_record_costs(capsys):
    words = ["data=fake", "data.resolution=32", "data.args.num_images=16", "data.batch_size=16"]
    words += ["model.width_mult=0.35", "train.epochs=3", "run.device=cpu", "run.wandb=disabled"]
    with tempfile.TemporaryDirectory() as folder:
        spent = record.measure([*words, "run.pictures=true", f"run.root={folder}"])
    assert len(spent.epochs) == len(spent.ended) == 3
    # what is written takes some of the time, and not all
    assert 0 < statistics.mean(spent.epochs) < spent.epoch
    assert min(spent.opening, spent.closing) > 0
    record.report({"with": [spent], "without": [spent]})
    assert "an epoch with it, to one without: 1.000 (1.000 - 1.000)" in capsys.readouterr().out
