"""The store: what is written comes back, damage is noticed and moved aside, and a part of an id finds a run."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tables import FAILURE, ROW

from mtlprune_bench.errors import StoreError, UsageError
from mtlprune_bench.store import (
    COLUMNS,
    VERSION,
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


def test_any_damaged_byte_of_the_rows_is_noticed(tmp_path):
    write_rows(tmp_path, [ROW, ROW | {"value": 0.25, "reason": "-" * 64}])
    path = tmp_path / "rows.parquet"
    data = path.read_bytes()
    for place in range(0, len(data), 41):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        with pytest.warns(UserWarning, match=r"rows.parquet is damaged"):
            assert read_rows(tmp_path) is None
    path.write_bytes(data)
    assert read_rows(tmp_path)[1]["reason"] == "-" * 64


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


def test_a_store_that_is_written_says_which_format_it_has(tmp_path):
    Store(tmp_path / "new").check_writable()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["store.json"]
    assert read_json(tmp_path / "new" / "store.json") == {"version": VERSION}


def test_a_store_of_a_later_format_is_refused_and_left_as_it_is(tmp_path):
    write_json(tmp_path / "store.json", {"version": VERSION + 1})
    before = (tmp_path / "store.json").read_bytes()
    with pytest.raises(
        StoreError, match=rf"has format {VERSION + 1}, .*none above {VERSION}. Install a later one"
    ):
        Store(tmp_path)
    assert (tmp_path / "store.json").read_bytes() == before


@pytest.mark.parametrize("name", ["../elsewhere", "..", "/tmp", "a/b"])
def test_no_name_leads_out_of_the_store(tmp_path, name):
    for folder in (Store(tmp_path).run_folder, Store(tmp_path).stage_folder):
        with pytest.raises(StoreError, match="is no name of a folder in"):
            folder(name)


ENTRIES = [{"step": 0, "losses": {"a": 1.5}}, {"step": 1, "losses": {"a": 1e-05}}]


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_bit_of_json_and_histories_is_noticed(tmp_path, data):
    write_json(tmp_path / "cost.json", {"training": {"seconds": 1e-05}, "ü": "E"})
    write_json(tmp_path / "environment.json", [{"a": 1}, {"a": None}])
    (tmp_path / "history.jsonl").unlink(missing_ok=True)
    append_history(tmp_path / "history.jsonl", ENTRIES)
    path = tmp_path / data.draw(st.sampled_from(["cost.json", "environment.json", "history.jsonl"]))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    if path.suffix == ".json":
        with pytest.warns(UserWarning, match="is damaged"):
            assert read_json(path) is None
        path.with_name(f"{path.name}.damaged-1").unlink()
    elif place == len(content) - 1:
        assert list(read_history(path)) == ENTRIES[:1], "a last line without an end is taken for half a line"
    else:
        with pytest.warns(UserWarning, match=r"history.jsonl is damaged in line \d"):
            read = list(read_history(path))
        assert len(read) < 2
        assert all(entry in ENTRIES for entry in read)


def test_files_of_the_first_format_are_read_without_checksums(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({"updates": []}, indent=2) + "\n")
    (tmp_path / "environment.json").write_text("[]\n")
    (tmp_path / "history.jsonl").write_text('{"step": 0}\n')
    assert Store(tmp_path).runs() == []
    assert read_json(tmp_path / "plan.json") == {"updates": []}
    assert read_json(tmp_path / "environment.json") == []
    assert list(read_history(tmp_path / "history.jsonl")) == [{"step": 0}]


@pytest.mark.parametrize("data", [b"[" * 100_000, b"\x00" * 50, b"", b'{"sha256": "x"}', b"5 5", b"\xff\xfe{}"])
def test_garbage_is_no_json_and_no_row(tmp_path, data):
    for name, read in (("plan.json", read_json), ("rows.parquet", lambda path: read_rows(path.parent))):
        (tmp_path / name).write_bytes(data)
        with pytest.warns(UserWarning, match="is damaged"):
            assert read(tmp_path / name) is None


def test_lines_of_a_history_that_are_no_entries_are_passed_over(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'5\n[]\n{"step": "x"}\n{"step": 2}\n')
    assert list(read_history(path)) == [{"step": 2}]


@pytest.mark.parametrize("below", ["file", "file/store"])
def test_a_store_that_cannot_be_written_is_named(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match=rf"Cannot write .*{below}/.probe.*choose another folder"):
        Store(tmp_path / below).check_writable()
    assert (tmp_path / "file").read_text() == "mine"
