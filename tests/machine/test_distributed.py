"""Several processes do what one does: the same batch, the same steps, every image once."""

import json
import subprocess
import sys

import pytest
import torch
from hard_run import WORDS, folder_of, is_running, ranks, rows, start, wait_for
from image_folders import write_classes
from programs import ROOT, environment
from rank_jobs import dies, lives_on, refuses

from mobilenet_exp import train
from mobilenet_exp.core.console import no_progress
from mobilenet_exp.core.errors import InputError, RunError
from mobilenet_exp.machine.distributed import joined
from mobilenet_exp.machine.launch import launch
from mobilenet_exp.training.step import wrap_model
from mobilenet_exp.training.train import build_state, finish_epoch, make_updates

CPU = torch.device("cpu")


def _steps(config) -> dict:
    """Train one epoch in this process of a team; return what each step left."""
    torch.set_num_threads(1)
    with joined(CPU) as world:
        session = build_state(config, world=world)
        wrap_model(session)
        losses, before = [], 0.0
        start = {key: value.clone() for key, value in session.model.state_dict().items()}
        for _ in make_updates(session, no_progress):
            total = sum(world.gather(session.meter.loss_sum.item()))
            losses.append((total - before) / session.loaders.sampler.batch_size)
            before = total
        model = {key: value.clone() for key, value in session.model.state_dict().items()}
        metrics, _ = finish_epoch(session)
        return {"losses": losses, "start": start, "model": model, "metrics": metrics}


def test_a_group_that_was_left_is_kept_and_another_one_can_be_joined():
    """Its end waits for threads that may wait for Python: a process never ended, once."""
    assert launch(lives_on, (), processes=2, max_restarts=0)


# with mixing, whose pairs stay together, and an average; dropout's masks would differ
SHARED = (
    "model.dropout=0", "data=fake", "data.resolution=32", "data.augment=affine",
    "data.batch_size=16", "data.args.num_images=101", "data.mixup=0.4", "train.epochs=2",
    "train.precise_bn_batches=0", "optimizer=sgd", "optimizer.lr=0.02", "train.ema_decay=0.9",
)  # fmt: skip


def _steps_of_each(configs: list) -> list[dict]:
    return [_steps(config) for config in configs]


def test_two_processes_of_half_a_batch_follow_one_of_the_whole(quick):
    """Step for step, within float32's rounding; SyncBatchNorm here is our own, for the CPU."""
    configs = [quick(*SHARED, f"train.bn={bn}") for bn in ("sync", "frozen")]
    both = launch(_steps_of_each, (configs,), processes=2, max_restarts=0)
    for config, two in zip(configs, both, strict=True):
        one = _steps(config)
        assert len(one["losses"]) == 6
        torch.testing.assert_close(two["losses"], one["losses"], rtol=2e-4, atol=1e-5)
        gap = _largest_gap(two["model"], one["model"])
        moved = _largest_gap(one["model"], one["start"])
        print(f"bn={config.train.bn}: weights and statistics moved {moved:.1e}, differ {gap:.1e}")
        assert gap < 1e-3 * moved
        # an odd number of images is shared; each counts once
        assert two["metrics"]["val/num_images"] == 101
        assert two["metrics"]["val/loss"] == pytest.approx(one["metrics"]["val/loss"], abs=1e-3)


def _largest_gap(ours, theirs) -> float:
    floats = [key for key, value in theirs.items() if value.is_floating_point()]
    return max((ours[key] - theirs[key]).abs().max().item() for key in floats)


def test_parts_of_a_batch_follow_the_whole_batch(quick):
    """Accumulation, with BatchNorm frozen: it sees each part alone."""
    words = (*SHARED, "train.bn=frozen")
    one, parts = _steps(quick(*words)), _steps(quick(*words, "train.accumulate=4"))
    torch.testing.assert_close(parts["losses"], one["losses"], rtol=2e-4, atol=1e-5)
    for key, value in one["model"].items():
        torch.testing.assert_close(parts["model"][key], value, rtol=1e-4, atol=1e-5)


def test_torchrun_is_the_same_run(tmp_path):
    words = (*WORDS, "train.epochs=2", "run.workers=0", f"run.root={tmp_path}/runs")
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launched, str(ROOT / "train.py"), *words]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2") == 1
    (results,) = tmp_path.glob("runs/*/results.json")
    assert json.loads(results.read_text())["epochs"] == 2


def test_devices_make_one_run_which_goes_on_after_a_process_has_died(tmp_path):
    """The main one alone writes; one is killed, and both start anew from the last checkpoint."""
    two = ("train.epochs=8", "run.workers=0", "run.devices=2", "run.wandb=offline")
    words = (*WORDS, *two, "run.save_every_minutes=0.005")
    process = start(tmp_path, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: list(tmp_path.glob("runs/*/checkpoints/previous.pt")), process)
    subprocess.run(["kill", "-9", str(ranks(process)[1])], check=True)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert out.count("on 2 x cpu") == 2
    assert out.count("resumed after epoch") == 1
    assert out.count("epoch 8/8") == 1
    # one for each start
    assert len(list(tmp_path.glob("runs/wandb/offline-run-*"))) == 2
    folder = folder_of(tmp_path)
    assert [row["epoch"] for row in rows(folder)] == list(range(1, 9))
    assert {row["val/num_images"] for row in rows(folder)} == {160}
    assert json.loads((folder / "results.json").read_text())["epochs"] == 8


def test_ranks_end_with_the_process_that_launched_them(tmp_path):
    words = (*WORDS, "train.epochs=400", "run.workers=0", "run.devices=2")
    process = start(tmp_path, *words, stdout=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("runs/*/checkpoints/last.pt")), process)
    left = ranks(process)
    assert len(left) == 2
    process.kill()
    wait_for(lambda: not any(is_running(pid) for pid in left))


@pytest.mark.parametrize(
    ("where", "heard"),
    [
        ("val", "validation image dog/1.jpg cannot be decoded"),
        ("train", "train/dog/1.jpg cannot be decoded"),
    ],
)
def test_what_fails_in_one_process_ends_all_of_them(tmp_path, where, heard):
    """In one line, whichever of them it was, and without a restart."""
    write_classes(tmp_path / "data", {"train": 4, "val": 2})
    damaged = tmp_path / "data" / where / "dog" / "1.jpg"
    damaged.write_bytes(damaged.read_bytes()[:300])
    words = (
        "model.name=tiny", "run.imports=[tiny_net]", "data=imagefolder", "data.resolution=32",
        f"data.root={tmp_path}/data", "data.batch_size=4", "train.epochs=1", "run.device=cpu",
        "run.wandb=disabled", "run.workers=0", "run.devices=2", "train.precise_bn_batches=0",
    )  # fmt: skip
    process = start(tmp_path, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    (line,) = errors.splitlines()
    assert heard in line
    assert not list(tmp_path.rglob("*.pt"))


def test_what_a_person_should_read_comes_back_from_the_processes(capfd):
    with pytest.raises(InputError, match="data.root=nowhere: no folder"):
        launch(refuses, (), processes=2, max_restarts=2)
    with pytest.raises(RunError, match=r"process \d of 2 exited with 9 after 1 attempt"):
        launch(dies, (), processes=2, max_restarts=0)


def test_devices_under_torchrun_are_refused(quick, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(InputError, match="run.devices=2: torchrun or srun has started the proc"):
        train(quick("run.devices=2"))
    assert not (tmp_path / "runs").exists()
