"""Schedules: plans that can be read before training, by the formulas of the papers."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import regrow as reference

from mtlprune_bench import Recipe, Update, UsageError, cubic, every, levels, never, once
from mtlprune_bench.pruning.schedules import Span, spans

DISPARSE = Recipe(steps=20_000, update_every=50, update_stop=0.75)
"""What DiSparse trains NYU-v2 with: updates every 50 steps until 15000 of 20000."""

EASY = settings(deadline=None, max_examples=200, derandomize=True)
sparsities = st.one_of(st.just(0.0), st.floats(0.0, 0.999), st.sampled_from([0.3, 0.5, 0.7, 0.9]))
recipes = st.builds(
    Recipe,
    steps=st.integers(20, 3000),
    update_every=st.integers(1, 400),
    update_stop=st.floats(0.1, 0.85),
)
pruned_once_or_in_rounds = st.one_of(
    st.builds(once, step=st.integers(0, 19)),
    st.builds(levels, rounds=st.integers(1, 12), steps=st.one_of(st.none(), st.integers(1, 100))),
    st.builds(levels, rate=st.floats(0.05, 0.95), steps=st.one_of(st.none(), st.integers(1, 100))),
)
regrowing = st.builds(
    every,
    regrow=st.floats(0.01, 0.99),
    interval=st.one_of(st.none(), st.integers(1, 5000)),
    stop=st.one_of(st.none(), st.floats(0.1, 0.85)),
    decay=st.sampled_from(["cosine", "constant"]),
    after=st.booleans(),
)
gradual = st.builds(cubic, interval=st.one_of(st.none(), st.integers(1, 5000)))


def steps(plan):
    return [update.step for update in plan]


def test_never_has_an_empty_plan():
    assert never().plan(0.9, DISPARSE) == ()
    assert spans((), 7) == (Span(0, 7, ()),)


def test_once_prunes_once():
    assert once().plan(0.9, DISPARSE) == (Update(0, 0.9),)
    assert once(step=19_999).plan(0.5, DISPARSE) == (Update(19_999, 0.5),)


@pytest.mark.parametrize("step", [-1, 100])
def test_an_update_outside_training_is_an_error(step):
    with pytest.raises(UsageError, match=f"prunes at step {step}, but training has 100 steps"):
        once(step=step).plan(0.9, Recipe(steps=100))


@pytest.mark.parametrize("alpha", [0.3, 0.5])
def test_three_hundred_updates_and_a_last_one_regrow_as_disparses_configuration_has_it(alpha):
    first, *middle, last = every(regrow=alpha).plan(0.9, DISPARSE)
    assert first == Update(0, 0.9), "the first masks"
    assert steps(middle) == list(range(0, 15_000, 50))
    assert len(middle) == 300
    assert last == Update(15_000, 0.9, 0.0), "what it drops is the excess alone"
    assert middle[0].regrow == alpha
    assert middle[150].regrow == pytest.approx(alpha / 2, abs=1e-12)
    for update in middle:
        assert update.regrow == pytest.approx(reference.cosine_decay(alpha, update.step, 15_000), abs=1e-12)
        assert update.sparsity == 0.9
        assert not update.restart
    assert reference.cosine_decay(alpha, 15_000, 15_000) == 0


def test_updates_after_the_step_come_one_step_later_with_the_same_fractions():
    before, after = every(regrow=0.3).plan(0.8, DISPARSE), every(regrow=0.3, after=True).plan(0.8, DISPARSE)
    assert before[0] == after[0] == Update(0, 0.8), "the first masks are made before training all the same"
    assert steps(after[1:]) == [step + 1 for step in steps(before[1:])]
    assert [update.regrow for update in after] == [update.regrow for update in before]


def test_a_constant_fraction_stays_until_the_last_update_which_regrows_nothing():
    plan = every(regrow=0.3, decay="constant", interval=10, stop=0.5).plan(0.8, Recipe(steps=100))
    assert [update.regrow for update in plan] == [None, *[0.3] * 5, 0.0]
    assert steps(plan) == [0, 0, 10, 20, 30, 40, 50]


def test_the_last_update_comes_at_its_step_though_the_interval_does_not_fit():
    plan = every(interval=30, stop=0.75).plan(0.8, Recipe(steps=100))
    assert steps(plan) == [0, 0, 30, 60, 75]
    assert steps(every(interval=500).plan(0.8, Recipe(steps=100))) == [0, 0, 75]
    assert steps(cubic(interval=30).plan(0.8, Recipe(steps=100))) == [0, 30, 60, 75]


def test_the_interval_and_the_end_are_the_recipes_unless_the_schedule_says_otherwise():
    recipe = Recipe(steps=100_000, update_every=250, update_stop=0.75)
    assert steps(every().plan(0.9, recipe))[1:] == list(range(0, 75_001, 250))
    assert steps(every(interval=1000, stop=0.5).plan(0.9, recipe))[1:] == list(range(0, 50_001, 1000))
    assert steps(cubic(stop=0.1, interval=5000).plan(0.9, recipe)) == [0, 5000, 10_000]


def test_cubic_sparsity_is_the_papers_at_every_update():
    plan = cubic().plan(0.9, DISPARSE)
    assert plan[0] == Update(0, 0.0)
    assert plan[-1] == Update(15_000, 0.9), "to the bit"
    assert steps(plan) == list(range(0, 15_001, 50))
    for update in plan:
        assert update.sparsity == pytest.approx(reference.cubic_sparsity(0.9, update.step, 15_000), abs=1e-12)
        assert update.regrow is None
    # By hand: a third of the way 1 - (2 / 3) ** 3 = 19 / 27 of the sparsity, half way 7 / 8.
    assert plan[100].sparsity == pytest.approx(0.9 * 19 / 27, abs=1e-12)
    assert plan[150].sparsity == pytest.approx(0.9 * 7 / 8, abs=1e-12)


def test_rounds_that_remove_a_fifth_end_at_exactly_the_sparsity_asked_for():
    plan = levels(rate=0.2).plan(0.9, Recipe(steps=50))
    # 0.8 ** 10 = 0.107 is more than a tenth, 0.8 ** 11 = 0.086 is less.
    assert len(plan) == 11
    assert steps(plan) == [50 * number for number in range(11)]
    assert [update.restart for update in plan] == [False, *[True] * 10]
    for number, update in enumerate(plan[:-1], 1):
        assert update.sparsity == pytest.approx(1 - 0.8**number, abs=1e-12)
    assert plan[-1].sparsity == 0.9
    assert [span.steps for span in spans(plan, 50)] == [50] * 11


@pytest.mark.parametrize(("rounds", "asked"), [(1, 0.2), (2, 0.36), (3, 0.488), (5, 0.67232), (10, 1 - 0.8**10)])
def test_a_sparsity_that_whole_rounds_reach_takes_no_round_more(rounds, asked):
    assert len(levels(rate=0.2).plan(asked, DISPARSE)) == rounds
    assert len(levels(rate=0.2).plan(asked + 1e-6, DISPARSE)) == rounds + 1


def test_eleven_short_rounds_and_a_whole_training_as_disparses_configuration_has_it():
    finetune = Recipe(steps=1000)
    plan = levels(rounds=11, steps=100).plan(0.9, finetune)
    assert steps(plan) == [0, *range(100, 1101, 100)]
    assert [update.restart for update in plan] == [False, *[True] * 11]
    for number, update in enumerate(plan[:11], 1):
        assert update.sparsity == pytest.approx(1 - 0.1 ** (number / 11), abs=1e-12)
        assert (1 - update.sparsity) / (1 - plan[number - 2].sparsity if number > 1 else 1) == pytest.approx(
            1 - 0.18887, abs=1e-5
        )
    assert plan[10].sparsity == plan[11].sparsity == 0.9
    trainings = spans(plan, finetune.steps)
    assert [(span.start, span.steps) for span in trainings] == [
        *((100 * number, 100) for number in range(11)),
        (1100, 1000),
    ]
    assert all(span.updates[0].step == 0 and len(span.updates) == 1 for span in trainings)


def test_rounds_without_a_rate_remove_the_same_share_each_time():
    kept = [1.0, *(1 - update.sparsity for update in levels(rounds=4).plan(0.9, DISPARSE))]
    assert [after / before for before, after in pairwise(kept)] == pytest.approx([0.1**0.25] * 4, abs=1e-12)


def test_nothing_to_remove_is_one_round():
    assert levels(rate=0.2).plan(0.0, DISPARSE) == (Update(0, 0.0),)
    assert {update.sparsity for update in levels(rounds=3).plan(0.0, DISPARSE)} == {0.0}


@pytest.mark.parametrize(
    ("schedule", "recipe"),
    [
        (every(interval=0), Recipe(steps=100)),
        (every(interval=-5), Recipe(steps=100)),
        (every(stop=0.0), Recipe(steps=100)),
        (every(stop=1.0), Recipe(steps=100)),
        (every(stop=1.5), Recipe(steps=100)),
        (every(stop=-0.5), Recipe(steps=100)),
        (every(stop=math.nan), Recipe(steps=100)),
        (every(stop=math.inf), Recipe(steps=100)),
        (every(stop=0.99, after=True), Recipe(steps=100)),
        (every(), Recipe(steps=1)),
        (every(), Recipe(steps=100, update_stop=0.001)),
        (cubic(interval=0), Recipe(steps=100)),
        (cubic(stop=1.0), Recipe(steps=100)),
        (cubic(stop=math.nan), Recipe(steps=100)),
        (cubic(), Recipe(steps=1)),
    ],
)
def test_a_schedule_that_does_not_fit_the_training_is_an_error(schedule, recipe):
    with pytest.raises(UsageError, match=rf"'{schedule.name}' updates every .*of {recipe.steps} steps"):
        schedule.plan(0.9, recipe)


def test_the_last_step_at_which_an_update_fits_is_the_one_before_the_last():
    recipe = Recipe(steps=100)
    assert every(stop=0.99).plan(0.9, recipe)[-1].step == 99
    assert every(stop=0.98, after=True).plan(0.9, recipe)[-1].step == 99


@pytest.mark.parametrize("regrow", [0.0, 1.0, -0.1, 1.1, math.nan])
def test_a_fraction_to_regrow_outside_its_range_is_an_error(regrow):
    with pytest.raises(UsageError, match=r"regrow of schedule 'every' is .*in \(0, 1\)"):
        every(regrow=regrow)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"rounds": 0}, "rounds of schedule 'levels' is 0"),
        ({"rate": 0.0}, r"rate of schedule 'levels' is 0.0"),
        ({"rate": 1.0}, r"rate of schedule 'levels' is 1.0"),
        ({"rate": math.nan}, r"rate of schedule 'levels' is nan"),
        ({"steps": 0}, "steps of schedule 'levels' is 0"),
    ],
)
def test_rounds_outside_their_range_are_an_error(values, problem):
    with pytest.raises(UsageError, match=problem):
        levels(**values)


@given(st.one_of(pruned_once_or_in_rounds, regrowing, gradual), sparsities, recipes)
@EASY
def test_every_plan_is_in_order_within_range_and_ends_at_the_sparsity_asked_for(schedule, sparsity, recipe):
    plan = schedule.plan(sparsity, recipe)
    assert all(0 <= update.sparsity < 1 for update in plan)
    assert plan[-1].sparsity == sparsity
    assert all(before.sparsity <= after.sparsity for before, after in pairwise(plan))
    assert plan[0].step >= 0
    for before, after in pairwise(plan):
        # The first masks and the first regrowth may come before one and the same step.
        assert before.step < after.step or (before.step == after.step == 0 and after.regrow is not None)
    assert all(update.regrow is None or 0 <= update.regrow < 1 for update in plan)
    if plan[-1].regrow is not None:
        assert plan[-1].regrow == 0
        assert all(update.regrow > 0 for update in plan[1:-1])
        assert all(before.regrow >= after.regrow for before, after in pairwise(plan[1:]))
    assert not plan[0].restart


@given(st.one_of(pruned_once_or_in_rounds, regrowing, gradual), sparsities, recipes)
@EASY
def test_the_trainings_of_a_plan_cover_it_without_gap_or_overlap(schedule, sparsity, recipe):
    plan = schedule.plan(sparsity, recipe)
    trainings = spans(plan, recipe.steps)
    assert trainings[0].start == 0
    assert trainings[-1].steps == recipe.steps
    assert all(before.start + before.steps == after.start for before, after in pairwise(trainings))
    assert len(trainings) == 1 + sum(update.restart for update in plan)
    back = [(span.start + update.step, update) for span in trainings for update in span.updates]
    assert [step for step, _ in back] == steps(plan)
    for (_, update), planned in zip(back, plan, strict=True):
        assert (update.sparsity, update.regrow, update.restart) == (
            planned.sparsity,
            planned.regrow,
            planned.restart,
        )
    for span in trainings:
        assert span.steps > 0
        assert all(0 <= update.step < span.steps for update in span.updates)
    assert all(span.updates[0].step == 0 and span.updates[0].restart for span in trainings[1:])
