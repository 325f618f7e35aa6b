"""Losses that are not finite: stopped at, skipped, gone back from; never saved."""

import pytest
import torch
from hard_run import assert_same, rows, state

from mobilenet_exp import train
from mobilenet_exp.config.identity import run_name
from mobilenet_exp.core.errors import NonFiniteLossError
from mobilenet_exp.machine.compute import set_determinism
from mobilenet_exp.training import checkpointing, step
from mobilenet_exp.training import train as training
from mobilenet_exp.weights.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("tiny")

SMALL = (
    "model.name=tiny",
    "data=fake", "data.resolution=32", "data.args.num_images=128", "data.batch_size=16",
    "train.epochs=2", "train.ema_decay=0.9",
)  # fmt: skip


def _poison(monkeypatch, *steps: int) -> None:
    """Make the images of some updates infinite, as a damaged file or memory might."""
    forward_backward = step.forward_backward

    def poisoned(state, images, labels):
        if state.step in steps:
            images = images.clone().fill_(float("inf"))
        return forward_backward(state, images, labels)

    monkeypatch.setattr(step, "forward_backward", poisoned)


def test_a_loss_that_is_not_finite_stops_with_all_there_is_to_know(quick, tmp_path, monkeypatch):
    _poison(monkeypatch, 11)
    config = quick(*SMALL)
    message = (
        r"the loss is not finite at epoch 2, step 11, lr 0\.0\d+; the last good checkpoint is "
        r".*/checkpoints/last.pt; a lower optimizer.lr or train.on_nonfinite=skip may help"
    )
    with pytest.raises(NonFiniteLossError, match=message):
        train(config)
    last = tmp_path / "runs" / run_name(config) / "checkpoints" / "last.pt"
    found = load_checkpoint(last)
    assert found["epoch"] == 1
    assert all(value.isfinite().all() for value in found["model"].values())


def test_a_bad_update_is_skipped_and_leaves_no_trace(quick, tmp_path, monkeypatch):
    """Neither in weights nor in BatchNorm's statistics nor in the average."""
    _poison(monkeypatch, 3, 11)
    config = quick(*SMALL, "train.on_nonfinite=skip", "train.precise_bn_batches=0")
    results = train(config)
    folder = tmp_path / "runs" / results["name"]
    assert [row["train/num_skipped"] for row in rows(folder)] == [1, 1]
    found = state(folder)
    for part in ("model", "model_ema"):
        assert all(value.isfinite().all() for value in found[part].values())
    assert found["model"]["stem.bn.num_batches_tracked"] == 14


def test_an_epoch_whose_last_update_fails_is_still_evaluated(quick, tmp_path, monkeypatch, capsys):
    """Going back to its start leaves it without figures of training, and with an accuracy."""
    _poison(monkeypatch, 15)
    results = train(quick(*SMALL, "train.on_nonfinite=rollback"))
    assert "continuing after update 8 of epoch 2" in capsys.readouterr().out
    last = rows(tmp_path / "runs" / results["name"])[-1]
    assert "train/loss" not in last
    assert last["val/num_images"] == 128


def test_a_run_killed_after_going_back_ends_in_the_same_bits(quick, tmp_path, monkeypatch):
    _poison(monkeypatch, 3)
    folders = []
    for name in ("whole", "cut"):
        words = (*SMALL, "train.on_nonfinite=rollback", f"run.root={tmp_path}/{name}")
        config = quick(*words)
        if name == "cut":
            with monkeypatch.context() as patch:
                patch.setattr(training, "finish_epoch", None)
                with pytest.raises(TypeError):
                    train(config)
        folders.append(tmp_path / name / train(config)["name"])
    assert_same(state(folders[0]), state(folders[1]))


def test_what_is_heard_late_of_a_bad_loss_goes_back_once(quick, monkeypatch, capsys):
    """As on CUDA, where the answer comes an update later and another look is under way."""

    class Late(checkpointing.LossWatch):
        under_way = False

        def is_bad(self, loss_sum):
            heard, self.under_way = self.under_way, super().is_bad(loss_sum)
            return heard

    monkeypatch.setattr(checkpointing, "LossWatch", Late)
    _poison(monkeypatch, 3)
    results = train(quick(*SMALL, "train.on_nonfinite=rollback"))
    assert capsys.readouterr().out.count("restored weights from") == 1
    assert results["epochs"] == 2


def test_nothing_but_bad_updates_is_a_diverged_run(quick, monkeypatch):
    _poison(monkeypatch, *range(100))
    words = (*SMALL, "data.args.num_images=400", "train.on_nonfinite=skip")
    with pytest.raises(NonFiniteLossError, match="20 updates in a row, up to step 19"):
        train(quick(*words))


def test_a_run_goes_back_to_its_checkpoint_and_passes_over_what_failed(
    quick, tmp_path, monkeypatch, capsys
):
    _poison(monkeypatch, 3, 11)
    config = quick(*SMALL, "train.on_nonfinite=rollback")
    results = train(config)
    out = capsys.readouterr().out
    assert "restored weights from epoch 1, update 0; continuing after update 4 of epoch 1" in out
    assert "restored weights from epoch 2, update 0; continuing after update 4 of epoch 2" in out
    folder = tmp_path / "runs" / results["name"]
    assert results["epochs"] == 2
    assert all(value.isfinite().all() for value in state(folder)["model"].values())


def test_a_run_that_always_fails_stops_going_back(quick, monkeypatch):
    _poison(monkeypatch, *range(100))
    with pytest.raises(NonFiniteLossError, match="went back 3 times in epoch 1; the last good"):
        train(quick(*SMALL, "train.on_nonfinite=rollback"))


def test_weights_that_are_not_finite_are_never_saved(quick, tmp_path, monkeypatch):
    """The loss was fine, the update spoiled the weights, and it is time to save."""
    sgd_step = torch.optim.SGD.step
    count = []

    def spoiled(self, *args, **options):
        sgd_step(self, *args, **options)
        count.append(1)
        if len(count) == 11:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(float("nan"))

    monkeypatch.setattr(torch.optim.SGD, "step", spoiled)
    config = quick(*SMALL, "run.save_every_minutes=0")
    with pytest.raises(NonFiniteLossError, match="the weights are not finite after step 10"):
        train(config)
    found = load_checkpoint(tmp_path / "runs" / run_name(config) / "checkpoints" / "last.pt")
    assert found["progress"]["update"] == 2
    assert all(value.isfinite().all() for value in found["model"].values())


def test_the_same_seed_gives_the_same_bits_and_deterministic_says_what_it_costs(
    quick, tmp_path, capsys
):
    words = (*SMALL, "data.mixup=0.2", "model.dropout=0.3", "run.deterministic=true")
    folders = []
    for name in ("a", "b"):
        results = train(quick(*words, f"run.root={tmp_path}/{name}"))
        folders.append(tmp_path / name / results["name"])
    assert_same(state(folders[0]), state(folders[1]))
    assert "slower on a GPU" in capsys.readouterr().out
    assert torch.are_deterministic_algorithms_enabled()
    set_determinism(False)
