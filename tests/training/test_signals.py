"""What ranks tell each other beside an update, and how a loss is watched."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist

from mobilenet_exp.core.console import no_progress
from mobilenet_exp.machine.distributed import joined
from mobilenet_exp.machine.launch import launch
from mobilenet_exp.machine.preemption import Stop
from mobilenet_exp.training.checkpointing import LOOK_EVERY, Checkpointer, LossWatch
from mobilenet_exp.training.step import wrap_model
from mobilenet_exp.training.train import build_state, make_updates

CPU = torch.device("cpu")
WORDS = (
    "data=fake", "data.resolution=32", "data.args.num_images=96", "data.batch_size=16",
    "train.epochs=1",
)  # fmt: skip


def _collectives(config, folder) -> tuple[list[int], int]:
    """Return how many exchanges of any kind each update made, and how many for gradients.

    The backend counts them. (torch's profiler names them, but damages the memory of gloo's
    threads now and then.)
    """
    torch.set_num_threads(1)
    with joined(CPU) as world:
        session = build_state(config, world=world)
        wrap_model(session)
        checkpointer = Checkpointer(session, folder, Stop(), ThreadPoolExecutor(1, "writer"))
        updates = make_updates(session, no_progress)
        counts = []
        for _ in range(4):
            next(updates)
            checkpointer.after_update()
            counts.append(dist.group.WORLD._get_sequence_number_for_group())
        num_buckets = session.ddp._get_ddp_logging_data()["num_buckets_reduced"]
        return [after - before for before, after in itertools.pairwise(counts)], num_buckets


def test_an_update_exchanges_its_gradients_and_one_word_more(quick, tmp_path):
    """Flags of all ranks, and no statistics."""
    words = (quick(*WORDS, "train.accumulate=2"), tmp_path)
    found, num_buckets = launch(_collectives, words, processes=2, max_restarts=0)
    assert num_buckets >= 1
    # the first update also settles the buckets
    assert found[-2:] == [num_buckets + 1] * 2


def test_the_loss_is_watched_at_every_update_on_a_cpu():
    watch = LossWatch(CPU)
    assert not watch.is_bad(torch.tensor(1.0))
    assert watch.is_bad(torch.tensor(float("nan")))


def test_on_cuda_the_answer_is_read_when_it_has_come(monkeypatch):
    """With events and memory of this machine in place of CUDA's."""

    class Event:
        has_come = False

        def record(self):
            pass

        def query(self):
            return Event.has_come

        def synchronize(self):
            pass

    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, pin_memory: empty(shape, dtype=dtype))
    watch = LossWatch(torch.device("cuda"))
    bad, good = torch.tensor(float("inf")), torch.tensor(1.0)
    assert not watch.is_bad(good)
    assert not watch.is_bad(bad)
    Event.has_come = True
    # the first look, at a good one, has come; the next looks at the bad one
    assert not watch.is_bad(bad)
    assert watch.is_bad(bad)


def test_elsewhere_it_is_looked_at_now_and_then():
    watch = LossWatch(torch.device("mps"))
    answers = [watch.is_bad(torch.tensor(float("nan"))) for _ in range(LOOK_EVERY)]
    assert answers == [False] * (LOOK_EVERY - 1) + [True]
