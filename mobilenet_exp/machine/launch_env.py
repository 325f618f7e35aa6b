"""Which of several processes this one is, by the variables that torchrun or Slurm's srun sets."""

import os
import re
import shutil
from collections.abc import Iterator
from typing import NamedTuple

from mobilenet_exp.core.errors import InputError

# what torchrun sets, and what a process must know to find the others
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
FIRST_PORT, NUM_PORTS = 20_000, 20_000


class Rank(NamedTuple):
    """A process's number among all that share the job, and among those of its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def this_rank() -> Rank:
    """Return this process's rank, alone if no launcher started it.

    Raises InputError for variables that contradict each other or are half set: such a
    process would wait for peers that never come.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return Rank()
    size = _count("WORLD_SIZE", 1, 1 << 20)
    rank = _count("RANK", 0, size - 1)
    local_size = _count("LOCAL_WORLD_SIZE", 1, size, default=size)
    local_rank = _count("LOCAL_RANK", 0, local_size - 1, default=rank % local_size)
    for name in NEEDED if size > 1 else ():
        if not os.environ.get(name):
            problem = f"must be set with the rest of {', '.join(NEEDED)}; torchrun sets them all"
            raise InputError(name, os.environ.get(name), problem)
    return Rank(rank, size, local_rank, local_size)


def ranks_on_machine() -> int:
    """Return how many processes share the cores that this one may use.

    Those of its machine, but where srun has given each task CPUs of its own.
    """
    here, env = this_rank(), os.environ
    is_task = "TORCHELASTIC_RUN_ID" not in env and env.get("SLURM_PROCID") == env.get("RANK")
    has_its_own = is_task and "SLURM_CPUS_PER_TASK" in env
    return 1 if has_its_own else here.local_size


def is_main_rank() -> bool:
    """Return whether this process speaks for all; with wrong variables it speaks for itself."""
    try:
        return this_rank().rank == 0
    except InputError:
        return True


def _count(name: str, least: int, most: int, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        problem = f"must be set where RANK or WORLD_SIZE is; torchrun sets {', '.join(NEEDED)}"
        raise InputError(name, None, problem)
    if not text.strip().isdecimal() or not least <= int(text) <= most:
        of_size = ", below WORLD_SIZE" if name == "RANK" else ""
        raise InputError(name, text, f"must be a whole number from {least} to {most}{of_size}")
    return int(text)


def read_slurm_env() -> None:
    """Translate what `srun` tells its tasks into torchrun's variables, if it started several.

    Without this, eight tasks of one `srun python train.py` would be eight lone runs.
    """
    env = os.environ
    tasks = env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS", "1")
    # a batch script is a task, too, before it has called srun
    is_task = "SLURM_STEP_ID" in env or shutil.which("srun") is None
    if "RANK" in env or "SLURM_PROCID" not in env or tasks == "1" or not is_task:
        return
    number = re.sub(r"\D", "", env.get("SLURM_JOB_ID", "0") + env.get("SLURM_STEP_ID", "0"))
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "localhost")
    variables = {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": env.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": str(_local_tasks(tasks)),
        "MASTER_ADDR": _first_host(nodes),
        "MASTER_PORT": str(FIRST_PORT + int(number or 0) % NUM_PORTS),
    }
    for name, value in variables.items():
        env.setdefault(name, value)


def _local_tasks(tasks: str) -> str:
    """Return this machine's part of `4(x2),3`: three machines, with 4, 4 and 3 tasks."""
    listed = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("SLURM_TASKS_PER_NODE")
    counts = list(_expanded(listed)) if listed else [tasks]
    node = os.environ.get("SLURM_NODEID", "0")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else counts[0]


def _expanded(listed: str) -> Iterator[str]:
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", listed):
        yield from [count] * int(times or 1)


def _first_host(nodes: str) -> str:
    """Return the first of `gpu[03-06,09]` or `gpu3,gpu4`."""
    match = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in match.groups()) if match else nodes
