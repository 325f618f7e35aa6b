"""A process knows its place among others, or says at once what it was not told."""

import os

import pytest
import torch

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.machine import launch_env
from mobilenet_exp.machine.distributed import own_gpu
from mobilenet_exp.machine.launch_env import Rank, is_main_rank, read_slurm_env, this_rank

ALL = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1234"}


@pytest.fixture
def environment(monkeypatch):
    for name in (*ALL, "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def set_all(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    yield set_all
    # what read_slurm_env has set
    for name in (*ALL, "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"RANK": "5"}, "RANK=5: must be a whole number from 0 to 1, below WORLD_SIZE"),
        ({"RANK": "x"}, "RANK=x: must be a whole number"),
        ({"RANK": None}, "RANK=null: must be set where RANK or WORLD_SIZE is"),
        ({"WORLD_SIZE": None}, "WORLD_SIZE=null: must be set"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: must be a whole number from 1"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR=null: must be set with the rest of RANK, WORLD"),
        ({"MASTER_PORT": ""}, "MASTER_PORT=: must be set with"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2: must be a whole number from 0 to 1"),
    ],
)
def test_a_place_that_cannot_be_is_refused(environment, wrong, message):
    environment(**{name: value for name, value in (ALL | wrong).items() if value is not None})
    with pytest.raises(InputError, match=message):
        this_rank()
    # such a process speaks for itself
    assert is_main_rank()


def test_the_place_that_torchrun_gives(environment):
    assert this_rank() == Rank(0, 1, 0, 1)
    environment(**ALL)
    assert this_rank() == Rank(1, 2, 1, 2)
    environment(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    assert this_rank() == Rank(1, 2, 0, 1)
    assert not is_main_rank()


@pytest.mark.parametrize("has_srun", [True, False])
def test_tasks_of_srun_are_one_job(environment, monkeypatch, has_srun):
    """Three nodes, with four, four and three tasks; this is the second of the last node."""
    monkeypatch.setattr(launch_env.shutil, "which", lambda _: "srun" if has_srun else None)
    slurm = {
        "SLURM_JOB_ID": "123456", "SLURM_PROCID": "9", "SLURM_NTASKS": "11", "SLURM_LOCALID": "1",
        "SLURM_NODEID": "2", "SLURM_TASKS_PER_NODE": "4(x2),3", "SLURM_JOB_NODELIST": "g[07-08,11]",
    }  # fmt: skip
    environment(**slurm)
    if has_srun:
        # the batch script itself is a lone process
        read_slurm_env()
        assert this_rank() == Rank()
        environment(SLURM_STEP_ID="0")
    read_slurm_env()
    assert this_rank() == Rank(9, 11, 1, 3)
    assert launch_env.os.environ["MASTER_ADDR"] == "g07"
    assert launch_env.ranks_on_machine() == 3
    environment(SLURM_CPUS_PER_TASK="12")
    assert launch_env.ranks_on_machine() == 1
    assert 20_000 <= int(launch_env.os.environ["MASTER_PORT"]) < 40_000


def test_each_process_takes_a_gpu_of_its_own():
    torch.testing.assert_close(own_gpu(Rank(3, 8, 3, 4), 4, sees_one=False), 3)
    # Slurm's --gpus-per-task shows each task one
    assert own_gpu(Rank(3, 8, 3, 4), 1, sees_one=True) == 0
    with pytest.raises(InputError, match="run.devices=4: this machine has 1 GPUs; each process"):
        own_gpu(Rank(3, 8, 3, 4), 1, sees_one=False)
