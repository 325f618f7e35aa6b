"""One answer an image."""

import math

import pytest
import torch
from torch import nn

from mobilenet_exp.core.errors import NonFiniteLossError
from mobilenet_exp.evaluation.metrics import merge, scores
from mobilenet_exp.evaluation.predict import predict

CPU = torch.device("cpu")


def _evaluate(model, batches, device) -> dict[str, float]:
    return scores(merge([predict(model, batches, device)]))


class _Fixed(nn.Module):
    """Answers with the logits it is shown."""

    def forward(self, images):
        return images


def test_evaluation_counts_every_image_once_with_a_ragged_last_batch():
    logits = torch.randn(103, 10)
    labels = torch.randint(10, (103,))
    batches = list(zip(logits.split(25), labels.split(25), strict=True))
    assert len(batches[-1][1]) == 3
    found = _evaluate(_Fixed(), batches, CPU)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert found["num_images"] == 103
    assert found["top1"] == pytest.approx(100 * (ranks == 0).float().mean().item())
    assert found["top5"] == pytest.approx(100 * (ranks < 5).float().mean().item())
    assert found["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item())


def test_top5_of_three_classes_is_everything():
    found = _evaluate(_Fixed(), [(torch.randn(9, 3), torch.arange(9) % 3)], CPU)
    assert found["top5"] == 100.0


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_an_answer_that_is_not_finite_has_no_score(bad):
    batch = (torch.full((2, 3), bad), torch.tensor([0, 1]))
    with pytest.raises(NonFiniteLossError, match="diverged"):
        _evaluate(_Fixed(), [batch], CPU)
