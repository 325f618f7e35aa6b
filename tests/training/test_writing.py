"""What is written beside the training is what there was when it was asked for."""

import torch

from mobilenet_exp.training.checkpointing import host_copy


def test_a_copy_does_not_follow_the_weights():
    weight = torch.nn.Parameter(torch.zeros(3))
    state = {"model": {"weight": weight}, "groups": [{"lr": 0.1, "params": (weight, 0)}]}
    copied = host_copy(state)
    with torch.no_grad():
        weight += 1
    assert torch.equal(copied["model"]["weight"], torch.zeros(3))
    assert torch.equal(copied["groups"][0]["params"][0], torch.zeros(3))
    assert copied["groups"][0]["lr"] == 0.1
