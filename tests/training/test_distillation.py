"""A student and its teacher."""

import pytest
import torch
from torch import nn

from mobilenet_exp import train
from mobilenet_exp.config.schema import DistillConfig, Preprocessing
from mobilenet_exp.core.console import no_progress
from mobilenet_exp.core.errors import InputError
from mobilenet_exp.training.distillation import Teacher
from mobilenet_exp.training.train import build_state, finish_epoch, make_updates
from mobilenet_exp.weights.checkpoint import load_checkpoint

SMALL = (
    "data=fake", "data.resolution=32", "data.args.num_images=64", "data.batch_size=16",
    "train.epochs=1",
)  # fmt: skip

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def test_a_teacher_s_part_of_the_loss_is_its_share():
    """By hand: T squared times the divergence of the softened answers."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    knows, sees = Preprocessing(mean=[0.5] * 3, std=[0.5] * 3), Preprocessing()
    config = DistillConfig(teacher="x", temperature=2.0, share=0.25)
    teacher = Teacher(net, knows, sees, config)
    pixels = torch.rand(4, 3, 8, 8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    logits, loss = torch.randn(4, 5), torch.tensor(1.5)
    joined = teacher.join(loss, logits, (pixels - mean) / std)
    answers = net((pixels - 0.5) / 0.5)
    p = (answers / 2).softmax(1)
    distance = (p * (p.log() - (logits / 2).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(joined, 0.75 * loss + 0.25 * 4 * distance, rtol=1e-4, atol=1e-5)


def test_a_student_learns_from_a_run_s_checkpoint(quick, tmp_path):
    first = train(quick(*SMALL, "model=v2"))
    best = tmp_path / "runs" / first["name"] / "checkpoints" / "best.pt"
    config = quick(*SMALL, f"distill.teacher={best}", "distill.share=1.0")
    session = build_state(config)
    teacher = load_checkpoint(best)["model"]["stem.conv.weight"]
    assert torch.equal(session.teacher.net.stem.conv.weight, teacher)
    for _ in make_updates(session, no_progress):
        pass
    metrics, _ = finish_epoch(session)
    # all of the loss is the distance to the teacher, which is less than that to the labels
    assert metrics["train/loss"] < 2.0
    assert torch.equal(session.teacher.net.stem.conv.weight, teacher)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("distill.teacher=nowhere.pt",), "distill.teacher=nowhere.pt: no such file"),
        (
            ("distill.teacher=timm:nonet.x",),
            "distill.teacher=timm:nonet.x: not known to timm",
        ),
    ],
)
def test_a_teacher_that_is_not_there_is_refused(quick, words, line):
    with pytest.raises(InputError) as caught:
        build_state(quick(*SMALL, *words))
    assert str(caught.value).startswith(line)


def test_a_teacher_of_other_classes_is_refused(quick, tmp_path):
    results = train(quick(*SMALL, "data.args.num_classes=7"))
    best = tmp_path / "runs" / results["name"] / "checkpoints" / "best.pt"
    with pytest.raises(InputError, match="distill.teacher=.*: was trained on other classes than"):
        build_state(quick(*SMALL, f"distill.teacher={best}"))
