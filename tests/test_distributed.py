"""Several processes do what one does: the same batch, the same steps, every image once."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from hard_run import ROOT, WORDS, children, folder_of, rows, start, wait_for

from mobilenet_exp import build_model
from mobilenet_exp.config.convert import run_name
from mobilenet_exp.core.errors import InputError, RunError
from mobilenet_exp.data.sampler import Order
from mobilenet_exp.deploy import job as run
from mobilenet_exp.machine.distributed import joined, launch
from mobilenet_exp.models.dialect import adopt, dialect_of
from mobilenet_exp.training.loop import finish_epoch, train_epoch
from mobilenet_exp.training.session import build_session, connect

CPU = torch.device("cpu")


def _steps(config) -> dict:
    """Train one epoch in this process of a team; return what each step left."""
    torch.set_num_threads(1)
    with joined(CPU) as team:
        session = build_session(config, team)
        connect(session)
        losses, before = [], 0.0
        start = {key: value.clone() for key, value in session.model.state_dict().items()}
        for _ in train_epoch(session, lambda batches, *_: batches):
            total = sum(team.gather(session.tally.loss_sum.item()))
            losses.append((total - before) / session.loaders.order.batch_size)
            before = total
        model = {key: value.clone() for key, value in session.model.state_dict().items()}
        metrics, _ = finish_epoch(session)
        return {"losses": losses, "start": start, "model": model, "metrics": metrics}


# with mixing, whose pairs stay together, and an average; dropout's masks would differ
SHARED = (
    "model.dropout=0", "data=fake", "data.resolution=32", "data.augment=affine",
    "data.batch_size=16", "data.args.num_images=101", "data.mixup=0.4", "train.epochs=2",
    "train.precise_bn_batches=0", "optimizer=sgd", "optimizer.lr=0.02", "train.ema_decay=0.9",
)  # fmt: skip


@pytest.mark.parametrize("bn", ["sync", "frozen"])
def test_two_processes_of_half_a_batch_follow_one_of_the_whole(quick, bn):
    """Step for step, within float32's rounding; SyncBatchNorm here is our own, for the CPU."""
    config = quick(*SHARED, f"train.bn={bn}")
    one = _steps(config)
    two = launch(_steps, (config,), processes=2, max_restarts=0)
    assert len(one["losses"]) == 6
    torch.testing.assert_close(two["losses"], one["losses"], rtol=2e-4, atol=1e-5)
    gap, moved = _largest_gap(two["model"], one["model"]), _largest_gap(one["model"], one["start"])
    print(f"bn={bn}: after 6 steps weights and statistics moved {moved:.1e}, differ {gap:.1e}")
    assert gap < 1e-3 * moved
    # an odd number of images is shared; each counts once
    assert two["metrics"]["val/num_images"] == 101
    assert two["metrics"]["val/loss"] == pytest.approx(one["metrics"]["val/loss"], abs=1e-3)


def _largest_gap(ours, theirs) -> float:
    floats = [key for key, value in theirs.items() if value.is_floating_point()]
    return max((ours[key] - theirs[key]).abs().max().item() for key in floats)


def test_a_dialect_is_read_and_adopted_with_torch_s_synchronised_batchnorm():
    """What `train.bn=sync` makes on GPUs; every save asks for the dialect."""
    net = build_model("v2", width_mult=0.35)
    plain = dialect_of(net)
    synced = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert dialect_of(synced) == plain
    adopt(synced, replace(plain, bn_eps=0.5))
    assert synced.stem.bn.eps == 0.5


def test_parts_of_a_batch_follow_the_whole_batch(quick):
    """Accumulation, with BatchNorm frozen: it sees each part alone."""
    words = (*SHARED, "train.bn=frozen")
    one, parts = _steps(quick(*words)), _steps(quick(*words, "train.accumulate=4"))
    torch.testing.assert_close(parts["losses"], one["losses"], rtol=2e-4, atol=1e-5)
    for key, value in one["model"].items():
        torch.testing.assert_close(parts["model"][key], value, rtol=1e-4, atol=1e-5)


def test_every_way_of_cutting_a_batch_holds_the_same_pairs():
    def epoch(processes, accumulate):
        cuts = []
        for rank in range(processes):
            order = Order(
                100, 24, seed=3, side_at=lambda _: 32,
                rank=rank, processes=processes, accumulate=accumulate, pairs=True,
            )  # fmt: skip
            cuts.append(list(order))
        updates = zip(
            *[[*zip(*[iter(cut)] * accumulate, strict=True)] for cut in cuts], strict=True
        )
        return [
            {frozenset((a.index, b.index)) for parts in update for part in parts
             for a, b in zip(part, reversed(part), strict=True)}
            for update in updates
        ]  # fmt: skip

    whole = epoch(1, 1)
    assert [len(update) for update in whole] == [12] * 4
    assert epoch(2, 1) == epoch(4, 3) == epoch(1, 6) == whole


def test_a_batch_that_cannot_be_cut_is_refused(quick):
    message = r"data.batch_size=16: must be a multiple of 1 processes x 3 parts = 3"
    with pytest.raises(InputError, match=message):
        build_session(quick("data=fake", "data.batch_size=16", "train.accumulate=3"))


def test_devices_make_one_run_and_the_first_process_alone_writes(tmp_path):
    words = (*WORDS, "train.epochs=2", "run.workers=0", "run.devices=2", "run.wandb=offline")
    process = start(tmp_path, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert out.count("epoch 1/2") == 1
    assert "on 2 x cpu" in out
    assert len(list(tmp_path.glob("runs/wandb/offline-run-*"))) == 1
    folder = folder_of(tmp_path)
    assert [row["val/num_images"] for row in rows(folder)] == [160, 160]
    assert json.loads((folder / "results.json").read_text())["epochs"] == 2


def test_torchrun_is_the_same_run(tmp_path):
    words = (*WORDS, "train.epochs=2", "run.workers=0", f"run.root={tmp_path}/runs")
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launched, str(ROOT / "train.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2") == 1
    (results,) = tmp_path.glob("runs/*/results.json")
    assert json.loads(results.read_text())["epochs"] == 2


def test_a_process_that_dies_is_restarted_in_the_same_folder(tmp_path):
    """One of two is killed; both start anew and go on from the last checkpoint."""
    two = ("train.epochs=8", "run.workers=0", "run.devices=2")
    words = (*WORDS, *two, "run.save_every_minutes=0.005")
    process = start(tmp_path, *words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("runs/*/checkpoints/previous.pt")), process)
    subprocess.run(["kill", "-9", str(children(process, "spawn_main")[1])], check=True)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert "resumed after epoch" in out
    assert [row["epoch"] for row in rows(folder_of(tmp_path))] == list(range(1, 9))


def _alone_in_trouble(config, where) -> str:
    """Fail in the second process only, where it is said; return what the first one hears."""
    torch.set_num_threads(1)
    with joined(CPU) as team:
        session = build_session(config, team)
        connect(session)
        if team.rank == 1 and where == "evaluation":
            with torch.no_grad():
                session.loaders.val.dataset.dataset.transform = lambda image: torch.full(
                    (3, 32, 32), float("nan")
                )
        if team.rank == 1 and where == "loading":
            session.loaders.train.dataset.images = _Broken()
        try:
            for _ in train_epoch(session, lambda batches, *_: batches):
                pass
            finish_epoch(session)
        except RunError as error:
            return str(error)
    return "nothing"


class _Broken:
    def __len__(self):
        return 101

    def __getitem__(self, index):
        raise OSError("photo.jpg cannot be decoded: it is no image")


@pytest.mark.parametrize(
    ("where", "heard"),
    [
        ("evaluation", "the evaluation's loss is not finite: the training diverged"),
        ("loading", "photo.jpg cannot be decoded: it is no image; without that file"),
    ],
)
def test_what_fails_in_one_process_ends_all_of_them(quick, where, heard):
    config = quick(*SHARED)
    answer = launch(_alone_in_trouble, (config, where), processes=2, max_restarts=0)
    assert answer.startswith(heard)


def _dies() -> None:
    time.sleep(0.1)
    raise SystemExit(9)


def _refuses() -> None:
    raise InputError("data.root", "nowhere", "no folder")


def test_what_a_person_should_read_comes_back_from_the_processes(capfd):
    with pytest.raises(InputError, match="data.root=nowhere: no folder"):
        launch(_refuses, (), processes=2, max_restarts=2)
    with pytest.raises(RunError, match=r"process \d of 2 ended with 9, started 1 times"):
        launch(_dies, (), processes=2, max_restarts=0)


def test_devices_under_torchrun_are_refused(quick, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match="run.devices=2: torchrun has started the processes"):
        run.train(quick("run.devices=2"))
    assert not (tmp_path / "runs").exists()


def test_devices_are_a_place_and_parts_are_learned(compose_config):
    assert run_name(compose_config("run.devices=2")) == run_name(compose_config())
    assert run_name(compose_config("train.accumulate=2")) != run_name(compose_config())
