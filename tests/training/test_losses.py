"""Losses beside their formulas."""

import torch
from torch.nn import functional as F

from mobilenet_exp.training.losses import LOSSES


def test_binary_cross_entropy_asks_about_each_class():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 3, 1, 1, 2, 0])
    shares = F.one_hot(labels, 4).float()
    expected = F.binary_cross_entropy_with_logits(logits, shares * 0.9 + 0.1 / 4)
    loss = LOSSES.get("bce")(0.1)
    torch.testing.assert_close(loss(logits, labels), expected)
    # a mixed batch brings shares; these are smoothed, too
    torch.testing.assert_close(loss(logits, shares), expected)


def test_cross_entropy_is_torch_s():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 3, 1, 1, 2, 0])
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.equal(LOSSES.get("cross_entropy")(0.1)(logits, labels), expected)
