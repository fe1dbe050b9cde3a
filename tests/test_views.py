"""Views of comparisons: what is left out, how lines are ranked and sorted, and one line a method."""

import math

import pytest
from tables import ERROR, FAILURE, frame

from mtlprune_bench.commands import run_cli
from mtlprune_bench.errors import UsageError
from mtlprune_bench.results.comparisons import comparisons
from mtlprune_bench.results.render import footnotes, render
from mtlprune_bench.results.views import (
    RANK,
    check_columns,
    chosen,
    column_names,
    parse_filter,
    pivoted,
    sorted_by,
    taken,
    with_columns,
    with_ranks,
)
from mtlprune_bench.store import Store, write_json, write_rows

DENSE = {"method": "dense", "sparsity": 0.0, "paradigm": "baseline"}
STEPS = {"task": "", "split": "", "metric": "steps", "unit": "step", "higher_is_better": False}
WHOLE = {"task": "", "split": "", "component": "whole", "metric": "sparsity", "higher_is_better": None}


def table(*changes):
    (found,) = comparisons(frame(*changes))
    return found


def by_method(comparison, metric):
    """Return the means of the columns of `metric` by method and sparsity."""
    return {
        (line.method, line.sparsity): cell.mean
        for line in comparison.lines
        for column, cell in line.cells.items()
        if column.metric == metric
    }


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("method=snip", ["snip"]),
        ("method=sn*,rigl", ["snip", "rigl"]),
        ("method!=snip", ["rigl", "dense"]),
        ("sparsity=0.9", ["rigl"]),
        ("sparsity!=0", ["snip", "rigl"]),
        ("settings=arbiter=majority", ["rigl"]),
        ("settings=", ["snip", "dense"]),
        ("stand_in=False", ["snip", "rigl", "dense"]),
        ("seed=0", ["snip", "rigl", "dense"]),
        ("seed=1", []),
        ("recipe=30 steps", ["snip", "rigl", "dense"]),
        ("finetune=*[[]abc]", []),
    ],
)
def test_a_filter_takes_the_rows_that_it_says(text, kept):
    rows = frame({}, {"method": "rigl", "sparsity": 0.9, "settings": "arbiter=majority"}, DENSE)
    assert list(rows["method"][taken(rows, [parse_filter(text)])]) == kept


def test_a_recipe_with_brackets_is_found_as_it_is_printed():
    rows = frame({"recipe": "30 steps [abc]"})
    assert taken(rows, [parse_filter("recipe=30 steps [abc]")]).all()


def test_failed_runs_have_no_metric_and_stay_whatever_metric_is_asked_for():
    rows = frame({}, ERROR, FAILURE | {"status": "failed", "run": "bad"})
    assert list(taken(rows, [parse_filter("metric=miou")])) == [True, False, True]
    assert list(taken(rows, [parse_filter("metric!=miou")])) == [False, True, True]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("method", "Cannot read the filter 'method'. Write NAME=VALUE"),
        ("methods=snip", "Unknown column of rows 'methods'. Did you mean 'method'?"),
    ],
)
def test_a_filter_that_cannot_be_read_is_named(text, problem):
    with pytest.raises(UsageError, match=problem.replace("?", r"\?")):
        parse_filter(text)


def test_lines_and_failures_are_chosen_together():
    bad = FAILURE | {"status": "failed", "reason": "no", "run": "bad"}
    comparison = table({}, {"method": "rigl"}, bad, bad | {"run": "worse", "method": "rigl"})
    left = chosen(comparison, [parse_filter("method=rigl")], frozenset({"worse"}))
    assert [line.method for line in left.lines] == ["rigl"]
    assert left.failures == {"worse": "failed: no"}


def test_ranks_are_means_of_places_over_metrics_within_a_sparsity():
    values = {"a": (0.5, 10.0), "b": (0.4, 9.0), "c": (0.4, 12.0)}
    changes = [{"method": name, "value": miou} for name, (miou, _) in values.items()]
    changes += [ERROR | {"method": name, "value": angle} for name, (_, angle) in values.items()]
    ranked = with_ranks(table(*changes, {"method": "a", "sparsity": 0.9}))
    # mIoU: a 1, b and c share 2 and 3; angle: b 1, a 2, c 3.
    assert by_method(ranked, RANK) == {("a", 0.5): 1.5, ("b", 0.5): 1.75, ("c", 0.5): 2.75}
    assert ranked.columns[-1].metric == RANK
    assert f"{RANK}: place among the lines of a sparsity" in " ".join(footnotes(ranked))


def test_places_agree_with_scipy():
    from scipy.stats import rankdata

    values = [0.3, 0.1, 0.4, 0.1, 0.5, 0.9, 0.2, 0.6, 0.5, 0.3]
    names = [f"method-{place}" for place in range(len(values))]
    ranked = with_ranks(table(*({"method": n, "value": v} for n, v in zip(names, values, strict=True))))
    expected = rankdata([-value for value in values])
    assert [by_method(ranked, RANK)[name, 0.5] for name in names] == list(expected)


def test_costs_losses_and_lines_that_missed_their_sparsity_have_no_rank():
    loss = {"metric": "loss", "unit": "", "higher_is_better": False}
    far = {"method": "far"}
    rows = [{"value": 0.5}, {"method": "b", "value": 0.4}, far | {"value": 0.9}, far | WHOLE | {"value": 0.1}]
    more = [STEPS | {"value": 9.0}, STEPS | {"method": "b", "value": 1.0}]
    more += [loss | {"value": 9.0}, loss | {"method": "b", "value": 1.0}]
    assert by_method(with_ranks(table(*rows, *more)), RANK) == {("snip", 0.5): 1.0, ("b", 0.5): 2.0}


def test_alone_at_every_sparsity_there_are_no_ranks():
    alone = table({}, {"sparsity": 0.9})
    assert with_ranks(alone) is alone


def test_columns_are_called_by_metric_task_and_block():
    comparison = table({}, ERROR, STEPS, WHOLE, DENSE, DENSE | ERROR)
    names = [column_names(column) for column in comparison.columns]
    assert names == [
        ("seg.miou", "miou", "seg"),
        ("normals.mean_angle", "mean_angle", "normals"),
        ("steps", "cost"),
        ("whole.sparsity", "sparsity"),
        ("delta.mean", "delta", "all tasks", "mean"),
    ]
    picked = with_columns(comparison, ["cost", "seg", "seg.miou", "delta"])
    assert [column.metric for column in picked.columns] == ["steps", "miou", "delta"]
    with pytest.raises(UsageError, match=r"Unknown column 'mio'\. Did you mean 'miou'"):
        check_columns([comparison], ["miou", "mio"])


def test_lines_are_sorted_from_the_best_within_each_sparsity():
    rows = [{"method": n, "value": v} for n, v in (("a", 0.1), ("b", 0.3), ("c", float("nan")), ("d", 0.2))]
    rows += [ERROR | {"method": n, "value": v} for n, v in (("a", 3.0), ("b", 2.0), ("d", 1.0))]
    comparison = table(*rows, {"method": "z", "sparsity": 0.1, "value": 0.0})
    order = [line.method for line in sorted_by(comparison, "miou").lines]
    assert order == ["z", "b", "d", "a", "c"]
    assert [line.method for line in sorted_by(comparison, "normals").lines] == ["z", "d", "b", "a", "c"]
    assert "static" not in render([sorted_by(comparison, "miou")], "markdown")


def test_lines_are_sorted_by_method_whatever_their_paradigm():
    comparison = table({"method": "b"}, {"method": "a", "paradigm": "learned"}, {"method": "c", "sparsity": 0.1})
    assert [line.method for line in comparison.lines] == ["c", "b", "a"]
    assert [line.method for line in sorted_by(comparison, "method").lines] == ["c", "a", "b"]


def test_a_name_of_several_columns_is_not_sorted_by():
    comparison = table({"metric": "error"}, {"metric": "error", "task": "edges"})
    with pytest.raises(UsageError, match=r"'error' is the name of several columns: seg.error, edges.error"):
        sorted_by(comparison, "error")


def test_a_pivot_has_a_line_a_method_and_columns_for_each_sparsity():
    rows = [
        {"sparsity": s, "value": v, "method": m} for m, s, v in (("a", 0.5, 0.1), ("a", 0.9, 0.2), ("b", 0.9, 0.3))
    ]
    comparison = pivoted(table(*rows, {"method": "a", "sparsity": 0.9, "seed": 1, "value": 0.4}))
    cells = {
        line.method: {column.sparsity: round(cell.mean, 9) for column, cell in line.cells.items()}
        for line in comparison.lines
    }
    assert cells == {"a": {0.5: 0.1, 0.9: 0.3}, "b": {0.9: 0.3}}
    assert [column.sparsity for column in comparison.columns] == [0.5, 0.9]
    assert all(math.isnan(line.sparsity) for line in comparison.lines)
    assert "snip" not in (text := render([comparison], "markdown"))
    assert "| seg miou ↑ % at 50 % |" in " ".join(text.split())
    assert comparison.notes == (
        "The number of seeds is not the same at all sparsities: a has 1 at 50 %, 2 at 90 %.",
    )


def test_a_pivot_keeps_the_note_of_a_sparsity_that_was_not_reached():
    rows = [{}, WHOLE | {"value": 0.5}, {"sparsity": 0.9}, {"sparsity": 0.9} | WHOLE | {"value": 0.2}]
    note = "snip was asked for a sparsity of 90 % and reached 20.00 %"
    assert [each for each in footnotes(pivoted(table(*rows))) if note in each]


@pytest.fixture
def store(tmp_path):
    """Return a store of dense and two methods, on two protocols."""
    for number, change in enumerate(
        [
            DENSE | {"value": 0.4},
            {"value": 0.5},
            {"method": "rigl", "paradigm": "dynamic"},
            {"protocol": "disparse"},
        ]
    ):
        run = {"run": f"run-{number}"}
        rows = frame(run | change, run | change | STEPS | {"value": 7.0}).astype(object)
        write_rows(tmp_path / f"run-{number}", rows.where(rows.notna(), None).to_dict("records"))
        write_json(tmp_path / f"run-{number}" / "config.json", {})
    assert len(Store(tmp_path).rows()) == 8
    return tmp_path


def asked(capsys, store, *words):
    code = run_cli(["table", "--store", str(store), "--format", "markdown", *words])
    return code, capsys.readouterr()


def test_the_base_of_deltas_need_not_be_shown(store, capsys):
    words = ("--filter", "sparsity!=0", "--filter", "protocol=standard", "--columns", "delta,steps")
    code, printed = asked(capsys, store, *words)
    assert code == 0, printed.err
    assert "| snip | 50 | no | 1 | 25.00 | 7 |" in " ".join(printed.out.split())
    assert "dense  " not in printed.out


def test_sorting_deltas_and_pivots_are_asked_for_on_the_command_line(store, capsys):
    code, printed = asked(
        capsys, store, "--filter", "protocol=standard", "--sort", "miou", "--delta", "one-metric"
    )
    assert code == 0, printed.err
    assert "delta (one-metric)" in printed.out
    assert "*static*" not in printed.out
    code, printed = asked(
        capsys, store, "--filter", "protocol=standard", "--pivot", "sparsity", "--columns", "seg"
    )
    assert code == 0, printed.err
    assert "at 50 %" in printed.out


def test_a_column_that_one_table_has_is_asked_of_all(store, capsys):
    code, printed = asked(capsys, store, "--columns", "delta,steps", "--sort", "delta")
    assert code == 0, printed.err
    heads = [line for line in printed.out.splitlines() if line.startswith("| method")]
    assert ["delta (mean)" in head for head in heads] == [False, True]
    assert all("steps" in head for head in heads)


def test_tables_say_in_what_they_differ_and_why_no_paper_is_beside_them(store, capsys):
    code, printed = asked(capsys, store, "--published")
    assert code == 0
    assert printed.out.count("Not set beside published numbers") == 2
    assert "2 tables, never averaged together, as they differ in protocol (disparse; standard)." in printed.out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--filter", "method=none"], "No results are left by the filters method=none"),
        (["--delta", "median"], "Unknown definition of delta 'median'"),
        (["--columns", "nothing"], "Unknown column 'nothing'"),
        (["--sort", "mio"], "Unknown column 'mio'. Did you mean 'miou'?"),
    ],
)
def test_what_cannot_be_printed_is_refused_in_one_line(store, capsys, words, problem):
    code, printed = asked(capsys, store, *words)
    assert (code, printed.out) == (2, "")
    assert printed.err.startswith(f"Error: {problem}")
    assert len(printed.err.splitlines()) == 1
