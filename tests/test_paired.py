"""Paired comparisons: only runs of one setting, sparsity and seed are paired, and each difference is checked."""

import math

import pytest
from tables import ERROR, FAILURE, frame

from mtlprune_bench.errors import UsageError
from mtlprune_bench.results.captions import label as label_of_line
from mtlprune_bench.results.comparisons import DELTA, comparisons, method_label
from mtlprune_bench.results.deltas import ADAPMTL
from mtlprune_bench.results.paired import pairings
from mtlprune_bench.results.significance import interval, p_value

DENSE = {"method": "dense", "sparsity": 0.0}
LTH = {"method": "lth", "sparsity": 0.9}
SNIP = {"method": "snip", "sparsity": 0.9}
WHOLE = {"task": "", "split": "", "component": "whole", "metric": "sparsity", "higher_is_better": None}


def runs(method, *values, first=0, **changes):
    """Return one row for each of `values`, of seeds from `first` on, None standing for no run."""
    facts = method | changes
    words = "-".join(str(facts.get(name, "")) for name in ("method", "settings", "sparsity", "recipe"))
    return [
        facts | {"seed": seed, "value": value, "run": f"{words}-s{seed}"}
        for seed, value in enumerate(values, first)
        if value is not None
    ]


def pair(rows, *names, **options):
    reference, *methods = names or ("lth", "snip")
    return pairings(frame(*rows), reference, methods, **options)


def only(rows, *names, **options):
    """Return the one effect of the one pairing that there is."""
    (pairing,) = pair(rows, *names, **options)
    (effect,) = pairing.effects
    return effect


def test_differences_are_taken_seed_by_seed_whatever_the_order_of_rows():
    rows = [*runs(LTH, 0.1, 0.2, 0.6), *reversed(runs(SNIP, 0.2, 0.5, 0.5))]
    effect = only(rows)
    assert (effect.method, effect.seeds, effect.column.metric) == ("snip", (0, 1, 2), "miou")
    assert (effect.base, effect.values) == ((0.1, 0.2, 0.6), (0.2, 0.5, 0.5))
    assert effect.differences == pytest.approx((0.1, 0.3, -0.1))
    assert (effect.low, effect.high) == interval(effect.differences)
    assert effect.p == effect.corrected == p_value(effect.differences)
    # |0.1 + 0.3 - 0.1|; of the sums, plus or minus 0.5, 0.3, 0.3 and 0.1, only two are nearer to 0.
    assert effect.p == 0.75
    assert (effect.verdict, effect.tests) == ("better", 1)


def test_seeds_that_only_one_of_both_has_are_left_out_and_named():
    (pairing,) = pair([*runs(LTH, 0.1, 0.2, 0.3, 0.4), *runs(SNIP, None, 0.4, 0.5, 0.9, 1.0)])
    assert pairing.effects[0].seeds == (1, 2, 3)
    assert "lth and snip do not both have seed 0, 4: left out." in pairing.notes


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_seeds_are_not_tested(count):
    effect = only([*runs(LTH, *[0.5] * count), *runs(SNIP, *[0.25] * count)])
    assert effect.differences == (-0.25,) * count
    assert effect.verdict == "worse"
    assert all(math.isnan(value) for value in (effect.low, effect.high, effect.p, effect.corrected))
    assert effect.tests == 0


def test_where_lower_is_better_a_fall_is_better():
    angles = only([*runs(LTH | ERROR, 20, 22, 24), *runs(SNIP | ERROR, 18, 21, 20)])
    assert sum(angles.differences) == -7
    assert angles.verdict == "better"


@pytest.mark.parametrize(("value", "word"), [(0.95, "higher"), (0.85, "lower"), (0.9, "equal")])
def test_where_neither_side_is_better_the_word_says_higher_or_lower(value, word):
    rows = [*runs(LTH | WHOLE, 0.9, 0.9, 0.9), *runs(SNIP | WHOLE, value, value, value)]
    assert only(rows, metrics=["sparsity"]).verdict == word


def test_equal_runs_are_equal_and_have_a_p_of_one():
    effect = only([*runs(LTH, 0.1, 0.2, 0.3), *runs(SNIP, 0.1, 0.2, 0.3)])
    assert (effect.verdict, effect.p, effect.low, effect.high) == ("equal", 1, 0, 0)


# Delta

SEEDS = (
    *runs(DENSE, 0.5, 0.2, 0.4),
    *runs(LTH, 0.5, 0.1, 0.2),
    # From dense: +10 %, 0 % and -50 %.
    *runs(SNIP, 0.55, 0.2, 0.2),
)


def test_delta_is_taken_from_the_dense_run_of_the_same_seed():
    effect = only(SEEDS, metrics=[DELTA])
    assert effect.base == pytest.approx((0, -0.5, -0.5))
    assert effect.values == pytest.approx((0.1, 0, -0.5))
    assert effect.differences == pytest.approx((0.1, 0.5, 0))


def test_delta_has_any_definition():
    more = [row | ERROR | {"value": 10 + row["value"]} for row in SEEDS]
    (pairing,) = pair([*SEEDS, *more], metrics=[DELTA], definition=ADAPMTL)
    assert [effect.column.task for effect in pairing.effects] == ["seg", "normals", ""]
    whole = pairing.effects[-1]
    # Seed 0: +10 % of seg; the angle rose from 10.5 to 10.55.
    assert whole.values[0] == pytest.approx((0.1 - 0.05 / 10.5) / 2)


def test_a_seed_without_dense_run_counts_for_metrics_and_not_for_delta():
    single = runs({"method": "dense-single-task", "sparsity": 0.0}, 0.9, 0.9, 0.9)
    (pairing,) = pair([row for row in (*SEEDS, *single) if row["run"] != "dense--0.0--s1"])
    miou, delta = pairing.effects
    assert (miou.seeds, delta.seeds) == ((0, 1, 2), (0, 2))
    assert delta.values == pytest.approx((0.1, -0.5)), "another network that is not pruned is no base"


def test_without_dense_runs_there_is_no_delta_and_a_note_says_so():
    (pairing,) = pair([row for row in SEEDS if row["method"] != "dense"])
    assert [effect.column.metric for effect in pairing.effects] == ["miou"]
    assert pairing.notes == ("No delta: there is no dense network with one of these seeds.",)


# Sparsities


def test_a_network_that_is_not_pruned_is_compared_with_every_sparsity():
    half = runs(SNIP, 0.4, 0.2, 0.4, sparsity=0.5)
    for names in (("dense", "snip"), ("snip", "dense")):
        found = pair([*SEEDS, *half], *names)
        assert [pairing.sparsity for pairing in found] == [0.5, 0.9]
        assert [pairing.effects[0].seeds for pairing in found] == [(0, 1, 2)] * 2
    miou, delta = pair([*SEEDS, *half], "dense", "snip")[0].effects
    assert miou.values == (0.4, 0.2, 0.4)
    assert delta.base == (0, 0, 0)
    assert delta.values == pytest.approx((-0.2, 0, 0))


def test_two_networks_that_are_not_pruned_are_compared_at_none():
    single = runs({"method": "dense-single-task", "sparsity": 0.0}, 0.9, 0.9, 0.9)
    (pairing,) = pair([*SEEDS, *single], "dense", "dense-single-task")
    assert pairing.sparsity == 0
    assert pairing.effects[0].values == (0.9, 0.9, 0.9)


def test_only_equal_sparsities_are_paired_and_only_those_asked_for():
    rows = [*SEEDS, *runs(LTH, 0.1, 0.1, 0.1, sparsity=0.5), *runs(SNIP, 0.2, 0.2, 0.2, sparsity=0.7)]
    half, seven, ninety = pair(rows)
    assert (half.effects, seven.effects) == ((), ())
    assert half.notes == seven.notes == ("lth and snip have no seed in common here.",)
    assert len(ninety.effects) == 2
    (chosen,) = pair(rows, sparsities=[0.9])
    assert chosen == ninety
    with pytest.raises(UsageError, match=r"no finished run at sparsity 0\.6, but at 0\.5, 0\.7, 0\.9\."):
        pair(rows, sparsities=[0.9, 0.6])
    with pytest.raises(UsageError, match="have no finished runs with the same"):
        pair(rows, sparsities=[0.5])


def test_a_sparsity_that_was_not_reached_has_a_note():
    reached = [
        *runs(LTH | WHOLE, 0.899, 0.901, 0.9),
        *runs(SNIP | WHOLE, 0, 0, 0.3),
        *runs(DENSE | WHOLE, 0, 0, 0),
    ]
    (pairing,) = pair([*SEEDS, *reached], "dense", "snip", "lth")
    assert pairing.notes == ("snip was asked for a sparsity of 90 % and reached 10.00 %.",)


# Settings


@pytest.mark.parametrize(
    ("column", "other"),
    [
        ("dataset", "toy2"),
        ("data", "other patches"),
        ("protocol", "disparse"),
        ("stand_in", True),
        ("model", "net (width=8)"),
        ("recipe", "31 steps"),
    ],
)
def test_runs_that_may_not_be_compared_are_not_paired(column, other):
    elsewhere = runs(SNIP, 0.2, 0.2, 0.2, **{column: other})
    with pytest.raises(UsageError, match="'lth' and 'snip' have no finished runs with the same dataset"):
        pair([*runs(LTH, 0.1, 0.1, 0.1), *elsewhere])
    both = pair([*runs(LTH, 0.1, 0.1, 0.1), *runs(SNIP, 0.4, 0.4, 0.4), *elsewhere])
    used = {pairing.setting[column]: [effect.values for effect in pairing.effects] for pairing in both}
    assert used == {frame({})[column].iloc[0]: [(0.4, 0.4, 0.4)], other: []}


def test_two_runs_of_one_seed_are_refused_with_both_ids():
    twice = [*SEEDS, *runs(SNIP, 0.7, run="other")[:1]]
    twice[-1]["run"] = "other"
    with pytest.raises(UsageError, match=r"(other and snip.*-s0|snip.*-s0 and other) are both 'snip' with seed 0"):
        pair(twice)
    assert pair([*twice, *runs({"method": "random", "sparsity": 0.9}, 0.1, 0.2)], "lth", "random"), (
        "snip is not asked"
    )


def test_failed_runs_are_not_paired_and_listed_with_their_reason():
    failed = FAILURE | SNIP | {"run": "bad", "status": "diverged", "reason": "the loss is nan", "seed": 2}
    (pairing,) = pair([*(row for row in SEEDS if row["run"] != "snip--0.9--s2"), failed])
    assert pairing.effects[0].seeds == (0, 1)
    assert "bad diverged: the loss is nan" in pairing.notes
    all_failed = [row for row in SEEDS if row["method"] != "snip"]
    with pytest.raises(UsageError, match="'lth' and 'snip' have no finished runs"):
        pair([*all_failed, failed])


def test_what_is_not_a_number_is_left_out():
    rows = [*SEEDS, *runs(LTH | ERROR, 1, 2, 3, 4, 5), *runs(SNIP | ERROR, 1, math.nan, 2, math.inf, 5)]
    effects = {effect.column.metric: effect for effect in pair(rows)[0].effects}
    assert effects["mean_angle"].seeds == (0, 2, 4)
    assert effects["miou"].seeds == (0, 1, 2)


# Metrics


def test_metrics_of_the_test_set_and_delta_are_shown_unless_others_are_asked_for():
    loss = {"metric": "loss", "unit": "", "higher_is_better": False}
    seconds = {"metric": "seconds", "unit": "s", "task": "", "split": "", "higher_is_better": False}
    extra = [loss, loss | {"task": ""}, loss | {"task": "", "split": "train"}, seconds, WHOLE | {"value": 0.9}]
    rows = [*SEEDS, *(run | each for run in SEEDS for each in extra)]
    (pairing,) = pair(rows)
    assert [(effect.column.metric, effect.column.task) for effect in pairing.effects] == [
        ("miou", "seg"),
        ("loss", ""),
        (DELTA, ""),
    ]
    (pairing,) = pair(rows, metrics=["seconds", "loss"])
    assert [(effect.column.metric, effect.column.split) for effect in pairing.effects] == [
        ("loss", "test"),
        ("loss", "train"),
        ("seconds", ""),
    ]


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"Unknown metric 'miuo'. Did you mean 'miou'\? Known: delta, miou"):
        pair(SEEDS, metrics=["miou", "miuo"])


# Several methods


def test_holm_is_over_the_methods_that_were_tested_by_one_metric():
    six = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    rows = [
        *runs(LTH, *[0.0] * 6),
        *runs(SNIP, *six),
        *runs({"method": "set", "sparsity": 0.9}, *six[:4]),
        *runs({"method": "gmp", "sparsity": 0.9}, *six[:2]),
    ]
    (pairing,) = pair(rows, "lth", "snip", "set", "gmp")
    snip, grown, few = pairing.effects
    # p of six and of four equal signs: 2/64 and 2/16; the smaller times 2, the larger times 1.
    assert (snip.p, snip.corrected, snip.tests) == pytest.approx((2 / 64, 4 / 64, 2))
    assert (grown.p, grown.corrected, grown.tests) == pytest.approx((1 / 8, 1 / 8, 2))
    assert (few.tests, len(few.seeds)) == (0, 2)


# Names

NAMED = [
    *runs(LTH, 0.1),
    *runs(LTH, 0.2, settings="control=shuffled"),
    *runs(LTH, 0.3, settings="control=redrawn"),
    *runs({"method": "lth-iterative", "sparsity": 0.9}, 0.4, settings="schedule.rate=0.5", finetune="8 steps"),
    *runs({"method": "imp", "sparsity": 0.9}, 0.5, settings="a=1"),
    *runs({"method": "imp", "sparsity": 0.9}, 0.6, settings="a=2"),
]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lth (control=shuffled)", 0.2),
        ("lth (control=r", 0.3),
        ("lth-iterative", 0.4),
        ("lth-", 0.4),
        ("lth-iterative (schedule.rate=0.5 8 steps)", 0.4),
        ("imp (a=1", 0.5),
    ],
)
def test_a_method_is_named_as_in_tables_or_by_the_beginning_of_that(name, value):
    effect = only(NAMED, "lth", name)
    assert (effect.base, effect.values) == ((0.1,), (value,))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("lth", "imp"), r"'imp' may be any of 'imp \(a=1\)', 'imp \(a=2\)'; write more of it, in quotes\."),
        (("lth (", "imp"), r"'lth \(' may be any of 'lth \(control=redrawn\)', 'lth \(control=shuffled\)'"),
        (("lth", "lth-iteratif"), r"Unknown method 'lth-iteratif'\. Did you mean 'lth-iterative'\?"),
        (("lht", "imp (a=1)"), r"Unknown method 'lht'\. Did you mean 'lth'\?"),
        (("lth", "lth"), "'lth' cannot be compared with itself; name another method"),
    ],
)
def test_names_that_fit_none_or_several_are_refused(names, message):
    with pytest.raises(UsageError, match=message):
        pair(NAMED, *names)


def test_a_method_that_is_named_twice_is_compared_once():
    (pairing,) = pair(NAMED, "lth", "lth-", "lth-iterative", "lth")
    assert len(pairing.effects) == 1


def test_methods_are_called_as_in_tables():
    (comparison,) = comparisons(frame(*NAMED))
    for line in comparison.lines:
        assert method_label(line.method, line.settings, line.finetune) == label_of_line(line)
