"""Figures are those of their definitions, from one answer an image."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix as sklearn_confusion

from mobilenet_exp.evaluation import metrics
from mobilenet_exp.evaluation.metrics import Predictions
from mobilenet_exp.evaluation.predict import predict


def _random_answers(count: int = 200, num_classes: int = 7) -> tuple[Predictions, torch.Tensor]:
    logits = 2 * torch.randn(count, num_classes)
    labels = torch.randint(num_classes, (count,))
    batches = [(logits[i : i + 32], labels[i : i + 32]) for i in range(0, count, 32)]
    return predict(torch.nn.Identity(), batches, torch.device("cpu")), logits


def test_scores_are_those_of_their_definitions():
    answers, logits = _random_answers()
    shares = logits.softmax(1)
    labels, best = answers.label, shares.argmax(1)
    found = metrics.scores(answers)
    assert found["top1"] == pytest.approx(100 * (best == labels).double().mean().item())
    top5 = [label in row for label, row in zip(labels, logits.topk(5).indices, strict=True)]
    assert found["top5"] == pytest.approx(100 * np.mean(top5))
    entropy = torch.nn.functional.cross_entropy(logits.double(), labels)
    assert found["loss"] == pytest.approx(entropy.item(), rel=1e-6)
    # arXiv:1706.04599, equation 3, bin by bin
    confidence, gap = shares.amax(1).double(), 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            right = (best == labels)[inside].double().mean()
            gap += inside.double().mean() * (right - confidence[inside].mean()).abs()
    assert found["ece"] == pytest.approx(100 * gap.item(), abs=1e-4)


def test_confusion_and_classes_agree_with_scikit_learn():
    answers, logits = _random_answers()
    confusion = metrics.Confusion.of(answers, 7)
    assert (confusion.matrix().numpy() == sklearn_confusion(answers.label, logits.argmax(1))).all()
    matrix = confusion.matrix()
    names = [f"c{i}" for i in range(7)]
    classes = metrics.per_class(confusion, names)
    assert sum(each["num_images"] for each in classes) == 200
    assert classes[3]["top1"] == 100 * matrix[3, 3].item() / matrix[3].sum().item()
    label, answer, images = metrics.most_confused(confusion, names)[0]
    assert matrix[int(label[1]), int(answer[1])] == images == matrix.fill_diagonal_(0).max()
    nothing = metrics.Confusion.of(metrics.no_predictions(), 1)
    assert metrics.per_class(nothing, ["none"])[0]["top1"] is None


def test_an_image_scored_twice_is_an_error():
    answers, _ = _random_answers(10)
    with pytest.raises(ValueError, match="an image was scored twice"):
        metrics.merge([answers, answers])


def test_images_labelled_minus_1_are_passed_over():
    images, labels = torch.randn(5, 3), torch.tensor([0, -1, 2, -1, 1])
    answers = predict(
        torch.nn.Identity(), [(images[:3], labels[:3]), (images[3:], labels[3:])],
        torch.device("cpu"), first=1, step=2,
    )  # fmt: skip
    assert answers.index.tolist() == [1, 5, 9]
    none = predict(torch.nn.Identity(), [(images, labels * 0 - 1)], torch.device("cpu"))
    assert len(none.index) == 0
    assert metrics.merge([none, answers]).index.tolist() == [1, 5, 9]


def test_an_image_may_have_several_right_labels():
    answers = Predictions(
        *(torch.tensor(x) for x in ([0, 1, 2], [0, 0, 0], [[5, 1], [5, 2], [3, 4]], [[0.5]] * 3)),
        torch.ones(3),
    )
    assert metrics.score_sets(answers, [{1, 9}, {5}, set()]) == {
        "top1": 50.0, "top5": 100.0, "num_images": 2,
    }  # fmt: skip
