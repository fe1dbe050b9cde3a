"""Results: only what may be compared is compared, and every mean, deviation and delta can be checked by hand."""

import math

import pytest
from tables import ERROR, FAILURE, frame

from mtlprune_bench.results import DELTA, Cell, Column, comparisons, delta, run_tables
from mtlprune_bench.store import Store, write_json, write_rows

DENSE = {"method": "dense", "sparsity": 0.0}
MIOU = Column("miou", "seg", "test", "", "fraction", True)
ANGLE = Column("mean_angle", "normals", "test", "", "degree", False)


def test_a_cell_is_the_mean_and_the_sample_standard_deviation_over_seeds():
    (table,) = comparisons(frame(*({"seed": seed, "value": value} for seed, value in enumerate([0.1, 0.2, 0.6]))))
    (line,) = table.lines
    assert line.seeds == (0, 1, 2)
    assert line.cells[MIOU].mean == pytest.approx(0.3)
    # Deviations -0.2, -0.1, 0.3: squares sum to 0.14, over 2.
    assert line.cells[MIOU].deviation == pytest.approx(math.sqrt(0.07))


def test_one_seed_has_no_deviation():
    (table,) = comparisons(frame({"value": 0.25}))
    (cell,) = table.lines[0].cells.values()
    assert cell.mean == 0.25
    assert math.isnan(cell.deviation)


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
def test_rows_that_may_not_be_compared_are_never_in_one_table(column, other):
    tables = comparisons(frame({"value": 0.2}, {column: other, "value": 0.4}))
    assert len(tables) == 2
    assert {table.setting[column] for table in tables} == {frame({})[column].iloc[0], other}
    assert sorted(table.lines[0].cells[MIOU].mean for table in tables) == [0.2, 0.4]


@pytest.mark.parametrize(
    ("column", "other"),
    [
        ("method", "random"),
        ("settings", "arbiter=all"),
        ("finetune", "8 steps"),
        ("pretrained", True),
        ("sparsity", 0.9),
    ],
)
def test_another_method_setting_finetuning_or_sparsity_is_another_line(column, other):
    (table,) = comparisons(frame({"value": 0.2}, {column: other, "value": 0.4}))
    assert sorted(line.cells[MIOU].mean for line in table.lines) == [0.2, 0.4]
    assert {getattr(line, column) for line in table.lines} == {frame({})[column].iloc[0], other}


def test_lines_are_sorted_by_sparsity_then_method():
    rows = frame({"sparsity": 0.9}, {"method": "b"}, {"method": "a"}, {"sparsity": 0.0, "method": "z"})
    (table,) = comparisons(rows)
    assert [(line.sparsity, line.method) for line in table.lines] == [
        (0.0, "z"),
        (0.5, "a"),
        (0.5, "b"),
        (0.9, "snip"),
    ]


def test_delta_is_the_mean_over_metrics_and_then_over_tasks():
    rows = frame(
        # seg: +10 % and -30 %, mean -10 %. normals: the angle fell from 20 to 15, +25 %. Mean over tasks: +7.5 %.
        DENSE | {"value": 0.5},
        DENSE | {"metric": "accuracy", "value": 0.8},
        DENSE | ERROR | {"value": 20.0},
        {"value": 0.55},
        {"metric": "accuracy", "value": 0.56},
        ERROR | {"value": 15.0},
    )
    (table,) = comparisons(rows)
    dense, pruned = table.lines
    last = table.columns[-1]
    assert last.metric == DELTA
    assert pruned.cells[last].mean == pytest.approx(0.075)
    assert last not in dense.cells


def test_delta_is_positive_where_lower_is_better_and_lower():
    better = delta({ANGLE: Cell(9.0, math.nan)}, {ANGLE: Cell(10.0, math.nan)})
    worse = delta({MIOU: Cell(9.0, math.nan)}, {MIOU: Cell(10.0, math.nan)})
    assert (better, worse) == (pytest.approx(0.1), pytest.approx(-0.1))


def test_delta_leaves_out_losses_what_is_zero_or_missing_in_dense_and_what_has_no_better_side():
    loss = Column("loss", "seg", "test", "", "", False)
    zero = Column("zero", "seg", "test", "", "fraction", True)
    new = Column("new", "seg", "test", "", "fraction", True)
    sparsity = Column("sparsity", "", "", "whole", "fraction", None)
    dense = {MIOU: Cell(0.5, 0), loss: Cell(1, 0), zero: Cell(0, 0), sparsity: Cell(0.5, 0)}
    pruned = {column: Cell(1.0, 0) for column in (MIOU, loss, zero, new, sparsity)}
    assert delta(pruned, dense) == pytest.approx(1.0)
    assert math.isnan(delta({zero: Cell(1.0, 0)}, dense))


def test_delta_of_a_negative_base_still_is_positive_where_better():
    assert delta({MIOU: Cell(-1.0, 0)}, {MIOU: Cell(-2.0, 0)}) == pytest.approx(0.5)


def test_without_a_dense_line_there_is_no_delta():
    (table,) = comparisons(frame({}, {"sparsity": 0.9}))
    assert table.columns == (MIOU,)


def test_the_base_of_delta_is_trained_once_from_scratch_and_as_registered():
    rows = frame(
        {"method": "a", "sparsity": 0.0, "finetune": "8 steps", "pretrained": True, "value": 0.1},
        {"method": "b", "sparsity": 0.0, "settings": "schedule=never", "value": 0.2},
        DENSE | {"value": 0.4},
        {"value": 0.3},
    )
    (table,) = comparisons(rows)
    changes = {line.method: line.cells.get(table.columns[-1]) for line in table.lines}
    assert changes.pop("dense") is None
    assert {name: round(cell.mean, 6) for name, cell in changes.items()} == {"a": -0.75, "b": -0.5, "snip": -0.25}


def test_failures_are_listed_with_their_reason_and_not_averaged():
    failed = FAILURE | {"run": "bad", "status": "diverged", "reason": "the loss is nan", "seed": 1}
    (table,) = comparisons(frame({"value": 0.5}, failed))
    (line,) = table.lines
    assert line.seeds == (0,)
    assert line.cells == {MIOU: Cell(0.5, pytest.approx(math.nan, nan_ok=True))}
    assert table.failures == {"bad": "the loss is nan"}


def test_a_setting_in_which_everything_failed_has_no_lines_but_the_reasons():
    (table,) = comparisons(frame(FAILURE | {"run": "bad", "status": "failed", "reason": "no"}))
    assert (table.lines, table.columns, table.failures) == ((), (), {"bad": "no"})


def test_losses_of_tasks_are_measured_but_not_in_the_table():
    loss = {"metric": "loss", "unit": "", "higher_is_better": False}
    (table,) = comparisons(frame({}, loss, loss | {"task": ""}))
    assert [(column.metric, column.task) for column in table.columns] == [("miou", "seg"), ("loss", "")]
    assert len(table.lines[0].cells) == 3


def test_no_rows_make_no_tables():
    assert comparisons(frame()) == []


def rows_of(*changes):
    return frame(*changes).astype(object).where(frame(*changes).notna(), None).to_dict("records")


def test_one_run_is_shown_with_its_facts_updates_files_and_numbers(tmp_path):
    folder = Store(tmp_path).run_folder("run")
    write_json(folder / "config.json", {"seed": 3, "dataset": "toy"})
    write_json(folder / "plan.json", {"updates": [{"step": 7, "sparsity": 0.5}]})
    packages = {"torch": "2.6"}
    session = {"started": "today", "device": "cpu", "commit": None, "packages": packages}
    write_json(folder / "environment.json", [session | {"device": "first"}, session])
    write_rows(folder, rows_of({"value": 0.123456789}))
    (title, facts, _), (_, updates, _), (_, files, _), (_, numbers, _) = run_tables(folder)
    assert title == "run finished"
    assert [*facts] == [
        ["dataset", "toy"],
        ["seed", "3"],
        ["started", "today"],
        ["device", "cpu"],
        ["commit", ""],
        ["packages", "torch 2.6"],
    ]
    assert updates == [["7", "0.5"]]
    assert [name for name, _ in files] == ["config.json", "environment.json", "plan.json", "rows.parquet"]
    assert numbers == [["miou", "seg", "test", "0.123457", "fraction"]]


def test_a_run_that_has_not_ended_or_failed_says_so(tmp_path):
    folder = Store(tmp_path).run_folder("run")
    write_json(folder / "config.json", {})
    assert run_tables(folder)[0][0] == "run not finished"
    write_rows(folder, rows_of(FAILURE | {"status": "failed", "reason": "no scores today"}))
    (title, *_), *_, (_, numbers, _) = run_tables(folder)
    assert title == "run failed: no scores today"
    assert numbers == []
