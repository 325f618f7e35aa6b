"""Learning rates at the ends and joints of every schedule."""

import pytest

from mobilenet_exp.errors import InputError
from mobilenet_exp.schedule import build_schedule


def _schedule(name, warmup_epochs=0.0, **args):
    return build_schedule(
        name, lr=0.1, epochs=90, steps_per_epoch=10, warmup_epochs=warmup_epochs, args=args
    )


def test_cosine_at_start_middle_and_end():
    lr_at = _schedule("cosine")
    assert lr_at(0) == pytest.approx(0.1)
    assert lr_at(450) == pytest.approx(0.05)
    assert lr_at(900) == pytest.approx(0.0, abs=1e-12)
    assert _schedule("cosine", final_factor=0.1)(900) == pytest.approx(0.01)


def test_step_divides_by_ten_every_thirty_epochs():
    lr_at = _schedule("step", every_epochs=30, gamma=0.1)
    steps = (0, 299, 300, 599, 600, 899)
    expected = (0.1, 0.1, 0.01, 0.01, 0.001, 0.001)
    assert [lr_at(step) for step in steps] == pytest.approx(expected)


def test_exponential_falls_at_every_step():
    lr_at = _schedule("exponential", every_epochs=2, gamma=0.5)
    assert lr_at(20) == pytest.approx(0.05)
    assert lr_at(10) == pytest.approx(0.1 * 0.5**0.5)


def test_constant():
    assert {_schedule("constant")(step) for step in (0, 1, 899)} == {0.1}


@pytest.mark.parametrize("warmup_epochs", [5, 0.5])
def test_warmup_rises_in_a_line_and_joins_the_schedule(warmup_epochs):
    lr_at = _schedule("cosine", warmup_epochs=warmup_epochs)
    joint = int(warmup_epochs * 10)
    rises = [lr_at(step + 1) - lr_at(step) for step in range(joint - 1)]
    assert rises == pytest.approx([0.1 / (joint + 1)] * (joint - 1))
    assert lr_at(0) > 0
    assert lr_at(joint) == pytest.approx(0.1)
    assert lr_at(900) == pytest.approx(0.0, abs=1e-12)


def test_warmup_longer_than_the_run_only_rises():
    lr_at = build_schedule("cosine", lr=0.1, epochs=1, steps_per_epoch=10, warmup_epochs=2)
    rates = [lr_at(step) for step in range(10)]
    assert rates == sorted(rates)
    assert rates[-1] < 0.1


def test_unknown_arguments_are_refused():
    with pytest.raises(InputError, match="schedule.args.gamma=0.1: not an option of cosine"):
        _schedule("cosine", gamma=0.1)
    with pytest.raises(InputError, match="every_epochs=0: must be a number > 0"):
        _schedule("step", every_epochs=0, gamma=0.1)
    with pytest.raises(InputError, match="gamma=-0.5: must be in"):
        _schedule("exponential", every_epochs=1, gamma=-0.5)
    with pytest.raises(InputError, match="final_factor=abc: must be a number"):
        _schedule("cosine", final_factor="abc")
    with pytest.raises(InputError, match="schedule.args.gamma=.*: must be given for step"):
        _schedule("step", every_epochs=1)
    with pytest.raises(InputError, match="schedule.name=poly: not known"):
        _schedule("poly")
