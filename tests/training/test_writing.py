"""What is written beside the training is what there was when it was asked for."""

import threading

import pytest
import torch

from mobilenet_exp.training.writing import Writer, host_copy


def test_a_copy_does_not_follow_the_weights():
    weight = torch.nn.Parameter(torch.zeros(3))
    state = {"model": {"weight": weight}, "groups": [{"lr": 0.1, "params": (weight, 0)}]}
    copied = host_copy(state)
    with torch.no_grad():
        weight += 1
    assert torch.equal(copied["model"]["weight"], torch.zeros(3))
    assert torch.equal(copied["groups"][0]["params"][0], torch.zeros(3))
    assert copied["groups"][0]["lr"] == 0.1


def test_one_task_is_done_after_the_other():
    writer, may_end, done = Writer(), threading.Event(), []
    writer.start(lambda: (may_end.wait(), done.append(1)))
    assert not done
    may_end.set()
    writer.start(lambda: done.append(2))
    writer.join()
    assert done == [1, 2]


def test_a_failure_is_raised_once_by_whoever_waits():
    def fail():
        raise OSError("full")

    writer = Writer()
    writer.start(fail)
    with pytest.raises(OSError, match="full"):
        writer.join()
    assert not writer.has_failed
    writer.join()
