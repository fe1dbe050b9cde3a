"""The store: what is written comes back, damage is noticed and moved aside, and a part of an id finds a run."""

import math
import warnings

import pytest
from tables import FAILURE, ROW

from mtlprune_bench.errors import StoreError, UsageError
from mtlprune_bench.store import (
    COLUMNS,
    Store,
    append_history,
    read_history,
    read_json,
    read_rows,
    write_json,
    write_rows,
)


def make_runs(folder, *names):
    for name in names:
        write_json(folder / name / "config.json", {})
    return Store(folder)


def test_rows_come_back_with_their_types(tmp_path):
    write_rows(tmp_path, [ROW | {"value": 0.1 + 0.2}, ROW | {"higher_is_better": None, "stand_in": True}])
    first, second = read_rows(tmp_path)
    assert first == ROW | {"value": 0.1 + 0.2}
    assert list(first) == list(COLUMNS)
    assert second["higher_is_better"] is None
    assert (second["stand_in"], second["pretrained"]) == (True, False)
    assert {name: type(value) for name, value in first.items()} == {name: type(ROW[name]) for name in COLUMNS}


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_number_that_is_not_there_comes_back_as_nan(tmp_path, value):
    write_rows(tmp_path, [ROW | {"value": value}])
    assert math.isnan(read_rows(tmp_path)[0]["value"])


@pytest.mark.parametrize("value", [math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308])
def test_extreme_numbers_come_back(tmp_path, value):
    write_rows(tmp_path, [ROW | {"value": value}])
    assert repr(read_rows(tmp_path)[0]["value"]) == repr(value)


def test_text_of_any_kind_comes_back(tmp_path):
    reason = 'two\nlines, a "quote", ümlaut, NA, nan and None'
    write_rows(tmp_path, [ROW | {"reason": reason, "settings": "NA", "unit": ""}])
    (row,) = read_rows(tmp_path)
    assert (row["reason"], row["settings"], row["unit"]) == (reason, "NA", "")


def test_equal_rows_are_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_rows(tmp_path / name, [ROW, ROW | {"seed": 1}])
    assert (tmp_path / "a/rows.parquet").read_bytes() == (tmp_path / "b/rows.parquet").read_bytes()


def test_a_run_without_rows_has_none(tmp_path):
    assert read_rows(tmp_path) is None
    assert Store(tmp_path).rows().empty
    assert list(Store(tmp_path / "missing").rows().columns) == list(COLUMNS)


def test_rows_of_a_store_are_those_of_all_runs_failed_ones_too(tmp_path):
    store = make_runs(tmp_path, "a", "b", "c")
    write_rows(tmp_path / "a", [ROW | {"run": "a"}, ROW | {"run": "a", "seed": 1}])
    write_rows(tmp_path / "b", [ROW | FAILURE | {"run": "b", "status": "failed"}])
    write_rows(tmp_path / "no-run", [ROW])
    assert list(store.rows()["run"]) == ["a", "a", "b"]
    assert store.rows().dtypes.astype(str).to_dict() == COLUMNS


def test_any_damaged_byte_of_the_rows_is_noticed_or_changes_nothing(tmp_path):
    rows = [ROW, ROW | {"value": 0.25}]
    write_rows(tmp_path, rows)
    path = tmp_path / "rows.parquet"
    data = path.read_bytes()
    read = []
    for place in range(0, len(data), 41):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        with warnings.catch_warnings(record=True, action="always") as caught:
            read.append(read_rows(tmp_path))
        assert (read[-1] is None) == ("rows.parquet is damaged" in "".join(str(each.message) for each in caught))
        assert read[-1] in (None, rows)
    assert read.count(None) > 20


def test_damaged_json_is_moved_aside_with_a_warning(tmp_path):
    path = tmp_path / "plan.json"
    for number, data in enumerate([b'{"half": ', b"\xff\xfe\x00"], start=1):
        path.write_bytes(data)
        with pytest.warns(UserWarning, match=rf"plan.json is damaged.*kept as plan.json.damaged-{number}"):
            assert read_json(path) is None
        assert (tmp_path / f"plan.json.damaged-{number}").read_bytes() == data
    assert not path.exists()


def test_json_comes_back_and_equal_values_are_equal_bytes(tmp_path):
    value = {"b": [1, None, True, 0.1], "a": {"ü": "x"}}
    write_json(tmp_path / "a.json", value)
    write_json(tmp_path / "b.json", dict(reversed(value.items())))
    assert read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_json(tmp_path / "missing.json") is None


def test_a_history_passes_over_half_a_line_and_the_last_of_a_step_wins(tmp_path):
    path = tmp_path / "history.jsonl"
    append_history(path, [{"step": 0, "losses": {"a": 1.0}}, {"step": 1, "losses": {"a": 2.0}}])
    with path.open("a") as file:
        file.write('{"step": 2, "losses": {"a"')
    assert [entry["step"] for entry in read_history(path)] == [0, 1]
    append_history(path, [{"step": 1, "losses": {"a": 3.0}}, {"step": 2, "losses": {"a": 4.0}}])
    assert [(entry["step"], entry["losses"]["a"]) for entry in read_history(path)] == [
        (0, 1.0),
        (1, 3.0),
        (2, 4.0),
    ]


def test_a_history_with_bytes_that_are_no_text_keeps_its_other_lines(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"step": 0}\n{"st\xffep": 1}\n{"step": 2}\n')
    assert list(read_history(path)) == [{"step": 0}, {"step": 2}]


def test_a_history_that_is_not_there_is_empty_and_one_that_cannot_be_written_says_so(tmp_path):
    assert list(read_history(tmp_path / "history.jsonl")) == []
    with pytest.raises(StoreError, match=r"Cannot write .*nowhere/history.jsonl: No such file"):
        append_history(tmp_path / "nowhere" / "history.jsonl", [{"step": 0}])


RUNS = ("snip-toy-0.5-s0-aaaa", "snip-toy-0.9-s0-bbbb", "random-toy-0.5-s0-ccaa")


@pytest.mark.parametrize(
    ("name", "number"), [("snip-toy-0.5", 0), ("bbbb", 1), ("ran", 2), ("-s0-aaaa", 0), (RUNS[1], 1)]
)
def test_a_run_is_found_by_the_beginning_or_end_of_its_id(tmp_path, name, number):
    assert make_runs(tmp_path, *RUNS).find(name) == tmp_path / RUNS[number]


def test_a_whole_id_is_found_though_another_begins_with_it(tmp_path):
    assert make_runs(tmp_path, "run", "run-2").find("run") == tmp_path / "run"


def test_a_part_that_several_ids_share_is_refused_with_all_of_them(tmp_path):
    with pytest.raises(
        UsageError, match=r"'aa' may be any of random-toy-0.5-s0-ccaa, snip-toy-0.5-s0-aaaa; write"
    ):
        make_runs(tmp_path, *RUNS).find("aa")


def test_an_unknown_run_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(UsageError, match=r"Unknown run 'snip-toy-0.6-s0'. Did you mean 'snip-toy-0.\d-s0-....'"):
        make_runs(tmp_path, *RUNS).find("snip-toy-0.6-s0")
    with pytest.raises(UsageError, match=r"Unknown run 'x'. Known: none."):
        Store(tmp_path / "empty").find("x")


def test_what_is_no_run_is_not_listed(tmp_path):
    store = make_runs(tmp_path, "b", "a")
    store.stage_folder("dense").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    assert [path.name for path in store.runs()] == ["a", "b"]


def test_a_store_is_checked_without_leaving_anything(tmp_path):
    Store(tmp_path / "new").check_writable()
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("below", ["file", "file/store"])
def test_a_store_that_cannot_be_written_is_named(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match=rf"Cannot write .*{below}/.probe.*choose another folder"):
        Store(tmp_path / below).check_writable()
    assert (tmp_path / "file").read_text() == "mine"
