"""Results: only what may be compared is compared, and every mean, deviation and delta can be checked by hand."""

import dataclasses
import hashlib
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tables import ERROR, FAILURE, ROW, frame

from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.paradigms import paradigm
from mtlprune_bench.results.comparisons import DELTA, Cell, Column, changes, comparisons, delta, run_tables
from mtlprune_bench.results.deltas import ADAPMTL, DEFINITIONS, MEAN, ONE_METRIC
from mtlprune_bench.results.render import footnotes, render
from mtlprune_bench.results.views import with_ranks
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.run import record_failure
from mtlprune_bench.runs.suite import prepare_all
from mtlprune_bench.store import CHECKSUM, COLUMNS, Store, read_json, read_rows, write_json, write_rows

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
        ("paradigm", "dynamic"),
        ("sparsity", 0.9),
    ],
)
def test_another_method_setting_finetuning_or_sparsity_is_another_line(column, other):
    (table,) = comparisons(frame({"value": 0.2}, {column: other, "value": 0.4}))
    assert sorted(line.cells[MIOU].mean for line in table.lines) == [0.2, 0.4]
    assert {getattr(line, column) for line in table.lines} == {frame({})[column].iloc[0], other}


def test_runs_of_one_seed_that_differ_in_what_rows_do_not_say_are_never_averaged():
    rows = [{"run": "a", "value": 0.2}, {"run": "b", "value": 0.4}, {"run": "c", "seed": 1, "value": 0.6}]
    (table,) = comparisons(frame(*rows))
    assert [(line.runs, line.seeds, line.cells[MIOU].mean) for line in table.lines] == [
        (("a",), (0,), 0.2),
        (("b",), (0,), 0.4),
        (("c",), (1,), 0.6),
    ]
    assert "several runs of one seed differ in what rows do not say" in " ".join(footnotes(table))
    assert "| snip [a]" in render([table], "markdown")


def test_such_runs_are_not_the_base_of_deltas():
    rows = [DENSE | {"run": "a", "value": 0.2}, DENSE | {"run": "b", "value": 0.4}, {"value": 0.3}]
    (table,) = comparisons(frame(*rows))
    assert table.columns == (MIOU,)


def test_a_line_knows_its_runs():
    (table,) = comparisons(frame({"run": "b", "seed": 1}, {"run": "a"}))
    assert (table.lines[0].runs, table.lines[0].apart) == (("a", "b"), False)


def test_lines_are_sorted_by_sparsity_then_paradigm_then_method():
    kinds = [("learned", "a"), ("baseline", "z"), ("static", "y"), ("static", "b"), ("dynamic", "c")]
    (table,) = comparisons(frame(*({"paradigm": kind, "method": name} for kind, name in kinds), {"sparsity": 0.1}))
    assert [line.method for line in table.lines] == ["snip", "z", "b", "y", "c", "a"]


def test_lines_of_one_paradigm_are_sorted_by_sparsity_then_method():
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


SEG, NORMALS = ([0.1, -0.3], [0.25])
"""The changes of two tasks' metrics from dense: 10 % better, 30 % worse; 25 % better."""


@pytest.mark.parametrize(
    ("definition", "seg", "whole"), [(MEAN, -0.1, 0.075), (ADAPMTL, -0.2, 0.025), (ONE_METRIC, 0.1, 0.175)]
)
def test_each_definition_of_delta_is_what_its_words_say(definition, seg, whole):
    rows = frame(
        DENSE | {"value": 0.5},
        DENSE | {"metric": "accuracy", "value": 0.8},
        DENSE | ERROR | {"value": 20.0},
        {"value": 0.5 * (1 + SEG[0])},
        {"metric": "accuracy", "value": 0.8 * (1 + SEG[1])},
        ERROR | {"value": 20.0 * (1 - NORMALS[0])},
    )
    (table,) = comparisons(rows, [definition])
    found = {column.task: table.lines[1].cells[column].mean for column in table.columns if column.definition}
    assert found.pop("") == pytest.approx(whole)
    assert found == ({} if definition is MEAN else {"seg": pytest.approx(seg), "normals": pytest.approx(0.25)})
    headings = render([table], "markdown")
    assert f"delta ({definition.name}) ↑ %" in headings
    assert f"relative improvement over dense, {definition.words}" in headings


def test_a_sum_of_changes_needs_all_metrics_and_a_mean_takes_those_there_are():
    accuracy = dataclasses.replace(MIOU, metric="accuracy")
    dense = {MIOU: Cell(0.5, 0), accuracy: Cell(0.5, 0), ANGLE: Cell(10.0, 0)}
    without = {accuracy: Cell(0.6, 0), ANGLE: Cell(9.0, 0)}
    assert changes(without, dense) == {"seg": [None, pytest.approx(0.2)], "normals": [pytest.approx(0.1)]}
    assert delta(without, dense) == pytest.approx(0.15)
    assert math.isnan(delta(without, dense, ADAPMTL))
    assert math.isnan(delta(without, dense, ONE_METRIC))


def test_several_definitions_stand_side_by_side_and_do_not_count_each_other():
    rows = frame(DENSE | {"value": 0.5}, DENSE | ERROR | {"value": 20.0}, {"value": 0.6}, ERROR | {"value": 15.0})
    (alone,) = comparisons(rows, [ONE_METRIC])
    (together,) = comparisons(rows, list(DEFINITIONS.values()))
    assert [column for column in together.columns if column.definition == "one-metric"] == [*alone.columns[2:]]
    assert all(together.lines[1].cells[column] == alone.lines[1].cells[column] for column in alone.columns)


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
    assert table.failures == {"bad": "diverged: the loss is nan"}


def test_a_setting_in_which_everything_failed_has_no_lines_but_the_reasons():
    (table,) = comparisons(frame(FAILURE | {"run": "bad", "status": "failed", "reason": "no"}))
    assert (table.lines, table.columns, table.failures) == ((), (), {"bad": "failed: no"})


def test_losses_of_tasks_are_measured_but_not_in_the_table():
    loss = {"metric": "loss", "unit": "", "higher_is_better": False}
    (table,) = comparisons(frame({}, loss, loss | {"task": ""}))
    assert [(column.metric, column.task) for column in table.columns] == [("miou", "seg"), ("loss", "")]
    assert len(table.lines[0].cells) == 3


def test_no_rows_make_no_tables():
    assert comparisons(frame()) == []


def test_rows_of_a_file_without_paradigms_are_compared_and_in_no_group():
    old = frame({"value": 0.2}, {"method": "a"}).drop(columns="paradigm")
    (table,) = comparisons(old)
    assert [(line.method, line.paradigm) for line in table.lines] == [("a", ""), ("snip", "")]


def older(folder, plan, method):
    """Write a run as it was before rows had a paradigm, with the checksum that it had."""
    write_json(folder / "config.json", {"method": method})
    write_json(folder / "plan.json", {"updates": plan})
    frame({}).drop(columns="paradigm").to_parquet(folder / "rows.parquet", index=False)
    table = pq.read_table(folder / "rows.parquet")
    # As it was computed then: by pandas, of all cells.
    text = table.to_pandas(ignore_metadata=True).to_csv(index=False)
    checksum = hashlib.sha256(text.encode()).hexdigest().encode()
    pq.write_table(table.replace_schema_metadata({CHECKSUM: checksum}), folder / "rows.parquet")


AT_INIT = {"is": "Method"}
TRAINED = {"is": "Method", "start": {"score_on": "trained", "train_from": "trained"}}
REWOUND = {"is": "Method", "start": {"score_on": "trained", "train_from": "init"}}
ONCE, LATER, AGAIN = (
    {"step": 0, "restart": False},
    {"step": 10, "restart": False},
    {"step": 10, "restart": True},
)


@pytest.mark.parametrize(
    ("method", "plan", "expected"),
    [
        (AT_INIT, [], "baseline"),
        (AT_INIT, [ONCE], "static"),
        (REWOUND, [ONCE, AGAIN], "static"),
        (AT_INIT, [ONCE, LATER], "dynamic"),
        (AT_INIT, [LATER], "dynamic"),
        (TRAINED, [ONCE, AGAIN], "pre-trained"),
        (TRAINED, [LATER], "pre-trained"),
        ({"is": "LearnedMethod"}, [], "learned"),
    ],
)
def test_the_paradigm_of_older_rows_is_told_from_what_the_run_is(tmp_path, method, plan, expected):
    older(tmp_path / "run", plan, method)
    (row,) = read_rows(tmp_path / "run")
    assert row == ROW | {"paradigm": expected}
    assert list(row) == list(COLUMNS)
    assert Store(tmp_path).rows()["paradigm"].tolist() == [expected]


def test_older_rows_without_a_plan_are_of_no_paradigm(tmp_path):
    older(tmp_path / "run", [], AT_INIT)
    (tmp_path / "run/plan.json").unlink()
    assert read_rows(tmp_path / "run") == [ROW | {"paradigm": ""}]


def test_ten_thousand_rows_of_five_hundred_runs_are_one_table(tmp_path):
    metrics = [f"metric {n}" for n in range(14)]
    costs = ("steps", "forward", "backward", "seconds", "peak_memory", "loss")
    facts = [{"metric": name} for name in metrics] + [{"metric": name, "task": ""} for name in costs]
    write_rows(tmp_path / "one", [ROW | fact for fact in facts])
    for number in range(500):
        write_json(tmp_path / f"run-{number}" / "config.json", {})
        (tmp_path / f"run-{number}" / "rows.parquet").write_bytes((tmp_path / "one/rows.parquet").read_bytes())
    rows = Store(tmp_path).rows()
    assert len(rows) == 10_000
    rows["method"] = [f"method {n // 20 % 100}" for n in range(10_000)]
    rows["seed"] = [n // 2000 for n in range(10_000)]
    rows["value"] = [n % 977 / 977 for n in range(10_000)]
    (table,) = comparisons(rows)
    text = render([with_ranks(table)], "terminal")
    assert len(table.lines) == 100
    assert text.count("method 99") == 3


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


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("dense", "baseline"),
        ("snip", "static"),
        ("gmp", "dynamic"),
        ("toy-finetune", "pre-trained"),
        ("str", "learned"),
    ],
)
def test_a_run_writes_its_paradigm_also_where_it_fails(tmp_path, method, expected):
    registry = load_registry([str(Path(__file__).parent / "toy_plugin.py")])
    asked = Request(method=method, dataset="toy", sparsity=0.5, seed=0)
    (experiment,) = prepare_all([asked], registry, notify=lambda text: None)
    record_failure(experiment, Store(tmp_path), registry, "failed", "no")
    (folder,) = Store(tmp_path).runs()
    (row,) = read_rows(folder)
    assert (row["status"], row["paradigm"]) == ("failed", expected)
    plan, config = (read_json(folder / name) for name in ("plan.json", "config.json"))
    assert paradigm(config["method"], plan["updates"]) == expected
