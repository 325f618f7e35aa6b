"""What processes tell each other beside an update: one exchange, heard at the next."""

import itertools

import torch
import torch.distributed as dist

from mobilenet_exp.core.console import no_progress
from mobilenet_exp.machine.distributed import Team, joined
from mobilenet_exp.machine.elastic import launch
from mobilenet_exp.machine.preemption import Stop
from mobilenet_exp.training import signals
from mobilenet_exp.training.checkpointing import Checkpointer
from mobilenet_exp.training.signals import Flags, LossWatch, Signals
from mobilenet_exp.training.step import wrap_model
from mobilenet_exp.training.train import build_state, make_updates

CPU = torch.device("cpu")
WORDS = (
    "data=fake", "data.resolution=32", "data.args.num_images=96", "data.batch_size=16",
    "train.epochs=1",
)  # fmt: skip


def test_a_process_that_is_alone_hears_its_own_at_once():
    ours = Flags(is_to_stop=True)
    alone = Signals(Team())
    assert alone.exchange(ours) == ours
    assert alone.last() == Flags()


def _heard() -> list[Flags]:
    with joined(CPU) as team:
        words = Signals(team)
        said = Flags(cannot_load=team.rank == 1, save_is_due=team.rank == 0)
        return [words.exchange(said), words.exchange(Flags()), words.last(), words.last()]


def test_several_hear_of_any_of_them_an_update_later():
    both = Flags(cannot_load=True, save_is_due=True)
    found = launch(_heard, (), processes=2, max_restarts=0)
    assert found == [Flags(), both, Flags(), Flags()]


def _collectives(config, folder) -> tuple[list[int], int]:
    """Return how many exchanges of any kind each update made, and how many for gradients.

    The backend counts them. (torch's profiler names them, but damages the memory of gloo's
    threads now and then.)
    """
    torch.set_num_threads(1)
    with joined(CPU) as team:
        session = build_state(config, team=team)
        wrap_model(session)
        checkpointer = Checkpointer(session, folder, Stop())
        updates = make_updates(session, no_progress)
        counts = []
        for _ in range(4):
            next(updates)
            checkpointer.after_update()
            counts.append(dist.group.WORLD._get_sequence_number_for_group())
        checkpointer.after_updates()
        num_buckets = session.ddp._get_ddp_logging_data()["num_buckets_reduced"]
        return [after - before for before, after in itertools.pairwise(counts)], num_buckets


def test_an_update_exchanges_its_gradients_and_one_word_more(quick, tmp_path):
    """No statistics, and nothing that waits for the slowest more than once."""
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
    answers = [watch.is_bad(torch.tensor(float("nan"))) for _ in range(signals.LOOK_EVERY)]
    assert answers == [False] * (signals.LOOK_EVERY - 1) + [True]
