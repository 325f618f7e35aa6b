"""Learning rates at their ends and joints."""

import pytest

from mobilenet_exp.core.errors import InputError
from mobilenet_exp.training.schedule import build_schedule


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


def test_a_warmup_may_take_the_whole_run_but_no_longer():
    lr_at = build_schedule("cosine", lr=0.1, epochs=1, steps_per_epoch=10, warmup_epochs=1)
    rates = [lr_at(step) for step in range(10)]
    assert rates == sorted(rates)
    assert rates[-1] < 0.1
    with pytest.raises(InputError, match="warmup_epochs=2: is longer than the whole training"):
        build_schedule("cosine", lr=0.1, epochs=1, steps_per_epoch=10, warmup_epochs=2)


def test_a_warmup_rises_from_its_share_and_can_count_as_schedule():
    """d-li14's 0.1 to 0.4 in 5 epochs; TF's decay that has run since the first step."""
    words = {"lr": 0.4, "epochs": 10, "steps_per_epoch": 100, "warmup_epochs": 5}
    lr_at = build_schedule("cosine", **words, warmup_from=0.25)
    assert lr_at(0) == pytest.approx(0.1, abs=0.001)
    assert lr_at(500) == 0.4
    decay = {"every_epochs": 2.5, "gamma": 0.5}
    after = build_schedule("step", **words, args=decay)
    within = build_schedule("step", **words, args=decay, counts_warmup=True)
    assert after(500) == 0.4
    assert within(500) == 0.4 * 0.5**2


def test_noise_stays_in_its_epochs_and_follows_from_the_seed():
    words = {"lr": 1.0, "epochs": 10, "steps_per_epoch": 2, "noise": [0.4, 0.9]}
    rates = [build_schedule("constant", **words, seed=3)(step) for step in range(20)]
    assert rates[:8] == [1.0] * 8
    assert rates[18:] == [1.0] * 2
    assert len(set(rates[8:18])) == 5
    assert all(0.33 <= rate <= 1.67 for rate in rates)
    assert rates == [build_schedule("constant", **words, seed=3)(step) for step in range(20)]
    assert rates != [build_schedule("constant", **words, seed=4)(step) for step in range(20)]


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


def test_a_cool_down_keeps_the_last_rate():
    length = {"lr": 1.0, "epochs": 10, "steps_per_epoch": 4}
    lr_at = build_schedule("cosine", **length, cooldown_epochs=2, args={"final_factor": 0.1})
    whole = build_schedule("cosine", **length | {"epochs": 8}, args={"final_factor": 0.1})
    assert [lr_at(step) for step in range(32)] == [whole(step) for step in range(32)]
    assert [lr_at(step) for step in range(32, 40)] == pytest.approx([0.1] * 8)
    with pytest.raises(InputError, match="schedule.cooldown_epochs=9: leaves no epoch to the"):
        build_schedule("cosine", **length, warmup_epochs=1, cooldown_epochs=9)
