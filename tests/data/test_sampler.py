"""Which image comes when: from the seed, however a batch is cut."""

import pytest
import torch

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.data.sampler import BatchSampler
from mobilenet_exp.training.train import build_state


def test_every_way_of_cutting_a_batch_holds_the_same_pairs():
    def epoch(processes, accumulate):
        cuts = []
        for rank in range(processes):
            order = BatchSampler(
                100, 24, seed=3, side_at=lambda _: 32,
                rank=rank, processes=processes, accumulate=accumulate, pairs=True,
            )  # fmt: skip
            cuts.append(list(order))
        updates = zip(
            *[[*zip(*[iter(cut)] * accumulate, strict=True)] for cut in cuts], strict=True
        )
        return [
            {frozenset((a.image, b.image)) for parts in update for part in parts
             for a, b in zip(part, reversed(part), strict=True)}
            for update in updates
        ]  # fmt: skip

    whole = epoch(1, 1)
    assert [len(update) for update in whole] == [12] * 4
    assert epoch(2, 1) == epoch(4, 3) == epoch(1, 6) == whole


def test_a_batch_that_cannot_be_cut_is_refused(quick):
    message = r"data.batch_size=16: must be divisible by 3 \(accumulate\) and not exceed"
    with pytest.raises(InputError, match=message):
        build_state(quick("data=fake", "data.batch_size=16", "train.accumulate=3"))


pytestmark = pytest.mark.usefixtures("tiny")

SMALL = (
    "model.name=tiny",
    "data=fake", "data.resolution=32", "data.args.num_images=64", "data.batch_size=16",
    "train.epochs=1",
)  # fmt: skip


def test_an_image_comes_as_often_as_augmentation_is_repeated():
    order = BatchSampler(64, 16, seed=0, side_at=lambda _: 32, repeats=4)
    keys = [key for batch in order for key in batch]
    assert len(keys) == 64
    assert len({key.image for key in keys}) == 16
    assert len({key.seed for key in keys}) == 64


def test_ten_million_images_are_drawn_by_the_batch():
    """What is kept is a number and a seed for each, not a Python object."""
    order = BatchSampler(10_000_000, 256, seed=0, side_at=lambda _: 32)
    batches = iter(order)
    first = next(batches)
    assert (len(first), len({key.image for key in first})) == (256, 256)
    kept = [each for each in batches.gi_frame.f_locals.values() if isinstance(each, torch.Tensor)]
    assert sum(each.nbytes for each in kept) == 12 * 10_000_000


def test_a_session_s_batches_have_the_epoch_s_side(quick):
    words = (*SMALL, "data.resolution=96", "data.progressive_from=32", "train.epochs=3")
    session = build_state(quick(*words))
    found = []
    for _ in range(3):
        session.loaders.sampler.set_position(len(found) + 1)
        found.append(next(iter(session.loaders.train))[0].shape[-1])
    assert found == [32, 64, 96]
