"""Learning, scoring, and the BatchNorm trap of short runs."""

import math

import pytest
import torch
from torch import nn

from mobilenet_exp.core import console
from mobilenet_exp.core.errors import InputError, NonFiniteLossError
from mobilenet_exp.evaluation.metrics import scores
from mobilenet_exp.machine.device import autocast, select_device
from mobilenet_exp.models import build_model
from mobilenet_exp.training import engine
from mobilenet_exp.training.loop import finish_epoch, train_epoch
from mobilenet_exp.training.session import build_session

CPU = torch.device("cpu")


def _learner(model, lr_at=lambda step: 0.05, **rules) -> engine.Learner:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    return engine.Learner(model, optimizer, lr_at, nn.CrossEntropyLoss(), CPU, model, **rules)


def _train(learner, batches, first_step=0) -> engine.Tally:
    tally = engine.Tally()
    for _ in engine.make_updates(learner, batches, tally, first_step=first_step):
        pass
    return tally


def _evaluate(model, batches, device) -> dict[str, float]:
    return scores(engine.predict(model, batches, device))


def _epoch(session):
    """Run one epoch of a session without saving."""
    for _ in train_epoch(session, console.progress):
        pass
    return finish_epoch(session)


def test_one_batch_is_learned():
    model = build_model("v3_small", width_mult=0.35, num_classes=4, stem_stride=1, dropout=0.0)
    batch = (torch.randn(16, 3, 32, 32), torch.arange(16) % 4)
    first = _train(_learner(model), [batch] * 30)
    assert first.num_images == 480
    last = _train(_learner(model), [batch])
    assert last.loss_sum / 16 < 0.2 < first.loss_sum / 480
    assert last.correct == 16


def test_the_rate_is_set_for_every_step_from_its_number():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    seen = []

    def lr_at(step):
        seen.append(step)
        return 0.1 * step

    learner = _learner(model, lr_at)
    _train(learner, [(torch.zeros(2, 3), torch.tensor([0, 1]))] * 3, first_step=7)
    assert sorted(set(seen)) == [7, 8, 9]
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(0.9)


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


def test_reestimated_statistics_are_plain_averages():
    norm = nn.BatchNorm2d(2, momentum=0.003)
    batches = [(torch.randn(8, 2, 4, 4) * 3 + 5, torch.zeros(8)) for _ in range(5)]
    engine.reestimate_bn(norm, batches, CPU, num_batches=3)
    mean = torch.stack([images.mean((0, 2, 3)) for images, _ in batches[:3]]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean)
    assert norm.momentum == 0.003


def test_a_short_run_evaluates_at_chance_only_without_reestimation(quick):
    """The trap and its cure, on real digits with the paper's BN momentum."""
    config = quick("model.width_mult=0.5", "train.epochs=6", "train.precise_bn_batches=0")
    session = build_session(config)
    assert session.model.stem.bn.momentum == 0.01
    for _ in range(6):
        metrics, _ = _epoch(session)
    assert metrics["train/top1"] > 60
    assert metrics["val/top1"] < 30
    engine.reestimate_bn(session.model, session.loaders.train, CPU, num_batches=22)
    assert _evaluate(session.model, session.loaders.val, CPU)["top1"] > 75


def test_an_epoch_reestimates_statistics_if_the_config_says_so(quick):
    tracked = {}
    for batches in (0, 3):
        session = build_session(quick(f"train.precise_bn_batches={batches}"))
        _epoch(session)
        tracked[batches] = session.model.stem.bn.num_batches_tracked.item()
    # 1437 digits are 22 batches of 64
    assert tracked == {0: 22, 3: 3}


def test_device_auto_is_there_and_an_absent_one_is_refused():
    assert select_device("auto").type in ("cpu", "cuda", "mps")
    assert select_device("cpu") == CPU
    absent = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(InputError, match=f"run.device={absent}: not on this machine; here: auto"):
        select_device(absent)


def test_autocast_is_off_on_the_cpu():
    with autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_autocast_is_bf16_on_cuda():
    device = select_device("auto")
    with autocast(device):
        ones = torch.ones(2, 2, device=device)
        assert (ones @ ones).dtype == torch.bfloat16
