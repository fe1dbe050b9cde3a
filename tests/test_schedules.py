"""Schedules: plans that can be read before training."""

import pytest

from mtlprune_bench import Update, UsageError, never, once


def test_once_prunes_once():
    assert once().plan(0.9, 100) == (Update(0, 0.9),)
    assert once(step=99).plan(0.5, 100) == (Update(99, 0.5),)


def test_never_has_an_empty_plan():
    assert never().plan(0.9, 100) == ()


@pytest.mark.parametrize("step", [-1, 100])
def test_an_update_outside_training_is_an_error(step):
    with pytest.raises(UsageError, match="100 steps"):
        once(step=step).plan(0.9, 100)
