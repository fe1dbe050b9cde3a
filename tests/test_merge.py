"""Merging: the same rows in either direction, the better of two runs, and stores that survive whatever happens."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mtlprune_bench.commands import run_cli
from mtlprune_bench.errors import StoreError, UsageError
from mtlprune_bench.files import locked
from mtlprune_bench.runs import merge as merging
from mtlprune_bench.runs.leftovers import REPLACED
from mtlprune_bench.runs.merge import ENDS, merge
from mtlprune_bench.store import LOCK, Store, read_json, read_rows, write_json, write_rows
from mtlprune_bench.training.checkpoint import WEIGHTS, save_tensors
from mtlprune_bench.training.state import CHECKPOINT

PLUGIN = str(Path(__file__).parent / "toy_plugin.py")
SNIP = "snip-toy-0.5"
QUICK = ("--set", "train.steps=6", "--set", "finetune.steps=2")


def mtlbench_run(folder, *options):
    asked = ("--plugin", PLUGIN, "--dataset", "toy", "--device", "cpu", *QUICK)
    return run_cli(["run", *asked, "--store", str(folder), *options])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with two stores that have one run in common."""
    folder = tmp_path_factory.mktemp("made")
    assert mtlbench_run(folder / "a", "--method", "snip,toy-finetune", "--sparsity", "0.5") == 0
    assert mtlbench_run(folder / "b", "--method", "snip,random", "--sparsity", "0.5,0.8") == 0
    return folder


@pytest.fixture
def a(made, tmp_path):
    """Return a copy of a store with two runs and the dense stage of one of them."""
    return Path(shutil.copytree(made / "a", tmp_path / "a"))


@pytest.fixture
def b(made, tmp_path):
    """Return a copy of a store with four runs."""
    return Path(shutil.copytree(made / "b", tmp_path / "b"))


def run_of(store, beginning):
    return Store(store).find(beginning)


def values(store):
    """Return the values that have to be the same wherever they are made, by what identifies a row."""
    rows = Store(store).rows()
    rows = rows[~rows["metric"].isin(["seconds", "peak_memory"])]
    keys = ["run", "split", "task", "component", "metric", "status", "reason"]
    assert not rows[keys].duplicated().any()
    return {tuple(row[key] for key in keys): row["value"] for row in rows.to_dict("records")}


def snapshot(folder):
    """Return all files in a folder with their bytes; hidden ones, too."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ends(*folders, store, **options):
    """Merge and return how often each end came out."""
    found = [merged.end for _, merged in merge(list(folders), Store(store), **options)]
    return {end: found.count(end) for end in ENDS if end in found}


def unfinish(folder, step, reason=""):
    """Make the run or stage in `folder` one that was stopped before `step`, or that failed after it."""
    for name in (WEIGHTS, "masks.safetensors"):
        (folder / name).unlink()
    save_tensors(folder / CHECKPOINT, {"model.x": torch.zeros(3)}, {"step": step})
    if folder.parent.name != "stages":
        row = read_rows(folder)[0]
        (folder / "rows.parquet").unlink()
        if reason:
            write_rows(folder, [row | {"status": "failed", "reason": reason, "metric": "", "value": None}])


def change(folder, metric, value):
    """Give one row of a run another value."""
    rows = read_rows(folder)
    write_rows(folder, [row | {"value": value} if row["metric"] == metric else row for row in rows])


def test_merging_in_either_direction_gives_the_same_rows(a, b, tmp_path):
    into_a, into_b = (Path(shutil.copytree(store, tmp_path / f"into-{store.name}")) for store in (a, b))
    assert ends(b, store=into_a) == {"copied": 4, "equal": 1}
    assert ends(a, store=into_b) == {"copied": 2, "equal": 1}
    assert ends(a, b, store=tmp_path / "new") == {"copied": 7, "equal": 1}
    assert len(values(into_a)) > len(values(a))
    assert values(into_a) == values(into_b) == values(tmp_path / "new") == values(a) | values(b)
    for store in (into_a, into_b, tmp_path / "new"):
        assert {path.name for path in store.glob("stages/*")} == {
            path.name for made in (a, b) for path in made.glob("stages/*")
        }


def test_a_copy_is_the_run_without_its_locks(a, tmp_path):
    ends(a, store=tmp_path / "new")
    expected = {path: data for path, data in snapshot(a).items() if not path.name.startswith(LOCK)}
    assert len(expected) < len(snapshot(a))
    assert snapshot(tmp_path / "new") == expected


def test_merging_twice_changes_nothing(a, b):
    ends(b, store=a)
    before = snapshot(a)
    assert ends(b, store=a) == {"equal": 5}
    assert snapshot(a) == before


def test_the_stores_merged_are_left_as_they_are(a, b):
    unfinish(run_of(a, SNIP), 3)
    before = snapshot(b)
    assert ends(b, store=a) == {"copied": 4, "replaced": 1}
    assert snapshot(b) == before


def test_a_dry_run_says_the_same_and_writes_nothing(a, b, tmp_path):
    unfinish(run_of(a, SNIP), 3)
    before = snapshot(a)
    said = [merged for _, merged in merge([b], Store(a), dry_run=True)]
    assert snapshot(a) == before
    assert {merged.end for merged in said} == {"copied", "replaced"}
    assert said == [merged for _, merged in merge([b], Store(a))]
    assert ends(b, store=tmp_path / "new", dry_run=True) == {"copied": 5}
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("state", ["unfinished", "failed", "locked once"])
def test_a_finished_run_replaces_one_that_is_not_which_is_kept(a, b, state):
    folder = run_of(a, SNIP)
    if state == "locked once":
        shutil.rmtree(folder)
        with locked(folder / LOCK, print):
            pass
    else:
        unfinish(folder, 3, "no memory" if state == "failed" else "")
    before = snapshot(folder)
    (merged,) = (merged for _, merged in merge([b], Store(a)) if merged.end == "replaced")
    assert merged.name == folder.name
    aside = a / REPLACED / f"{folder.name}.1"
    assert str(aside) in merged.note
    kept = snapshot(aside)
    assert {path: kept[path] for path in before if path.name != ".lock.owner"} == {
        path: data for path, data in before.items() if path.name != ".lock.owner"
    }
    assert [path.name for path in Store(a).runs()].count(folder.name) == 1
    assert len(Store(a).runs()) == 5
    assert values(a).items() >= values(b).items()


def test_what_is_replaced_again_is_kept_beside_the_first(a, b):
    for number in (1, 2):
        unfinish(run_of(a, SNIP), number)
        assert ends(b, store=a)["replaced"] == 1
    assert [merging._step(path) for path in sorted((a / REPLACED).glob(f"snip-*/{CHECKPOINT}"))] == [1, 2]


@pytest.mark.parametrize("reason", ["", "no memory"])
def test_a_finished_run_stays_where_the_other_is_not(a, b, reason):
    unfinish(run_of(b, SNIP), 3, reason)
    shutil.rmtree(b / "stages")
    before = snapshot(run_of(a, SNIP))
    assert ends(b, store=a) == {"copied": 3, "kept": 1}
    assert snapshot(run_of(a, SNIP)) == before


@pytest.mark.parametrize(
    ("theirs", "ours", "end"), [(5, 3, "replaced"), (3, 5, "kept"), (4, 4, "equal"), (5, None, "replaced")]
)
def test_of_two_unfinished_runs_the_later_step_is_kept(a, b, theirs, ours, end):
    unfinish(run_of(b, SNIP), theirs)
    unfinish(run_of(a, SNIP), ours or 5)
    if ours is None:
        (run_of(a, SNIP) / CHECKPOINT).write_bytes(b"no checkpoint")
    assert ends(b, store=a)[end] == 1
    assert merging._step(run_of(a, SNIP) / CHECKPOINT) == max(theirs, ours or 0)


def test_a_run_whose_first_round_is_trained_has_come_further(a, b):
    for store, step in ((a, 5), (b, 3)):
        unfinish(run_of(store, SNIP), step)
    save_tensors(run_of(b, SNIP) / "round-1" / WEIGHTS, {"x": torch.zeros(1)})
    assert ends(b, store=a)["replaced"] == 1
    assert (run_of(a, SNIP) / "round-1" / WEIGHTS).exists()


def test_a_run_that_was_stopped_on_another_machine_goes_on_here(made, a, b, tmp_path):
    plugin = tmp_path / "stop.py"
    plugin.write_text(
        "from mtlprune_bench import hookimpl\n\n\n@hookimpl\ndef step_finished(run, step, losses):\n"
        "    if step == 4:\n        raise KeyboardInterrupt\n"
    )
    options = ("--method", "snip", "--sparsity", "0.5", "--set", "engine.checkpoint_seconds=0")
    assert mtlbench_run(tmp_path / "stopped", *options, "--plugin", str(plugin)) == 130
    assert ends(tmp_path / "stopped", store=tmp_path / "here") == {"copied": 1}
    (folder,) = Store(tmp_path / "here").runs()
    assert merging._step(folder / CHECKPOINT) == 4
    assert mtlbench_run(tmp_path / "here", *options) == 0
    (whole,) = (path for path in Store(made / "a").runs() if path.name == folder.name)
    assert (folder / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert ends(tmp_path / "here", store=a) == {"equal": 1}


@pytest.mark.parametrize(("there", "end"), [("finished", "replaced"), ("unfinished", "equal")])
def test_a_stage_replaces_one_that_has_not_come_as_far(a, b, tmp_path, there, end):
    shutil.copytree(a, tmp_path / "here")
    (stage,) = (tmp_path / "here").glob("stages/dense-*")
    unfinish(stage, 3)
    if there == "unfinished":
        unfinish(a / "stages" / stage.name, 3)
    (merged,) = (merged for _, merged in merge([a], Store(tmp_path / "here")) if merged.kind == "stage")
    assert (merged.name, merged.end) == (stage.name, end)
    assert (stage / WEIGHTS).exists() == (there == "finished")
    assert (tmp_path / "here" / REPLACED).exists() == (end == "replaced")


def test_runs_that_ended_with_other_numbers_clash_and_all_are_named(a, b, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    ends(b, store=a)
    for beginning, value in (("snip-toy-0.5", 0.25), ("random-toy-0.8", 0.125)):
        change(run_of(b, beginning), "mean_iou", value)
        path = run_of(b, beginning) / "environment.json"
        sessions = json.loads(path.read_text())
        sessions[-1]["device"] = "NVIDIA H200"
        sessions[-1]["packages"]["torch"] = "9.9"
        write_json(path, sessions)
    change(run_of(b, "snip-toy-0.8"), "seconds", 1e6)
    change(run_of(b, "snip-toy-0.8"), "peak_memory", 1e6)
    before = snapshot(a)
    assert run_cli(["merge", str(b), "--store", str(a)]) == 1
    assert snapshot(a) == before
    out = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    for beginning, value in (("snip-toy-0.5", 0.25), ("random-toy-0.8", 0.125)):
        folder = run_of(a, beginning)
        own = next(row["value"] for row in read_rows(folder) if row["metric"] == "mean_iou")
        assert f"clash: {folder.name}, which stays as it is in {a}" in out
        assert ["test segmentation mean_iou", repr(own), repr(value)] in lines
    assert out.count("clash: ") == 2
    assert out.count("mean_iou") == 2, "only what differs is shown"
    packages = json.loads((folder / "environment.json").read_text())[-1]["packages"]
    assert lines.count(["device", "cpu", "NVIDIA H200"]) == 2
    assert lines.count(["torch", packages["torch"], "9.9"]) == 2
    assert "seconds" not in out


def test_a_row_that_only_one_of_two_runs_has_is_a_clash(a, b):
    folder = run_of(b, SNIP)
    write_rows(folder, [row for row in read_rows(folder) if row["metric"] != "mean_iou"])
    (merged,) = (merged for _, merged in merge([b], Store(a)) if merged.end == "clash")
    assert [(row[0], row[2]) for row in merged.differences] == [("test segmentation mean_iou", "none")]


def test_numbers_that_are_not_there_are_equal(a, b):
    for store in (a, b):
        change(run_of(store, SNIP), "mean_iou", None)
    assert "clash" not in ends(b, store=a)


def test_what_a_process_is_working_on_is_skipped_in_either_store(a, b, tmp_path):
    unfinish(run_of(a, SNIP), 3)
    before = snapshot(run_of(a, SNIP))
    with locked(run_of(a, SNIP) / LOCK, print), locked(run_of(b, "random-toy-0.8") / LOCK, print):
        skipped = {merged.name: merged.note for _, merged in merge([b], Store(a)) if merged.end == "skipped"}
    assert skipped == {
        run_of(a, SNIP).name: f"a process is working on it in {a}",
        run_of(b, "random-toy-0.8").name: f"a process is working on it in {b}",
    }
    assert {**snapshot(run_of(a, SNIP)), **before} == snapshot(run_of(a, SNIP))
    assert ends(b, store=a) == {"copied": 1, "equal": 3, "replaced": 1}


def test_a_run_that_a_process_begins_meanwhile_is_skipped(a, b, monkeypatch):
    unfinish(run_of(a, SNIP), 3)
    monkeypatch.setattr(merging, "in_work", lambda folder: False)
    with locked(run_of(a, SNIP) / LOCK, print):
        (merged,) = (merged for _, merged in merge([b], Store(a)) if merged.end == "skipped")
    assert merged.note == f"process {os.getpid()} has begun to work on it"
    assert not any((a / REPLACED).glob("*"))
    assert not (a / ".merging").exists()


def test_a_store_that_cannot_be_written_can_be_merged(a, tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("mtlprune_bench.runs.leftovers.is_locked", refused)
    assert ends(a, store=tmp_path / "new") == {"copied": 3}


def test_a_folder_that_is_named_after_a_run_but_is_another_is_skipped(a, tmp_path):
    run_of(a, SNIP).rename(a / "snip-of-monday")
    config = run_of(a, "toy-finetune") / "config.json"
    write_json(config, read_json(config) | {"seed": 1, "sparsity": 0.6})
    skipped = [merged for _, merged in merge([a], Store(tmp_path / "new")) if merged.end == "skipped"]
    assert len(skipped) == 2
    assert all("does not end in the hash of its config.json" in merged.note for merged in skipped)
    assert Store(tmp_path / "new").runs() == []


def test_what_was_replaced_is_not_taken_for_runs(a, b, tmp_path):
    unfinish(run_of(a, SNIP), 3)
    ends(b, store=a)
    assert ends(a / REPLACED, store=tmp_path / "new") == {"skipped": 1}


def test_damaged_rows_are_no_result(a, b):
    (run_of(b, SNIP) / "rows.parquet").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"rows.parquet is damaged"):
        assert ends(b, store=a)["kept"] == 1


@pytest.mark.parametrize("problem", ["missing", "no store", "itself", "itself by another name"])
def test_a_folder_that_cannot_be_merged_is_named_before_anything_is_done(a, b, tmp_path, problem):
    (tmp_path / "empty" / "notes").mkdir(parents=True)
    (tmp_path / "link").symlink_to(a)
    folder, text = {
        "missing": (tmp_path / "missing", "There is no folder .*missing"),
        "no store": (tmp_path / "empty", "empty is no store: there are no runs in it"),
        "itself": (a, "a is the store itself"),
        "itself by another name": (tmp_path / "link", "link is the store itself"),
    }[problem]
    before = snapshot(a)
    with pytest.raises(UsageError, match=text):
        merge([b, folder], Store(a))
    assert snapshot(a) == before


def test_problems_are_one_line(a, tmp_path, capsys):
    assert run_cli(["merge", str(tmp_path / "missing"), "--store", str(a)]) == 2
    assert run_cli(["merge", "--store", str(a)]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def full(count):
    """Return a `copyfile` that finds the disk full in the middle of the file after `count`."""
    copied = []

    def copyfile(source, target):
        if len(copied) == count:
            Path(target).write_bytes(Path(source).read_bytes()[:5])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        copied.append(target)
        Path(target).write_bytes(Path(source).read_bytes())

    return copyfile


@pytest.mark.parametrize("count", [0, 4])
def test_a_full_disk_leaves_what_was_there(a, b, monkeypatch, count):
    for path in Store(b).runs():
        if not path.name.startswith(SNIP):
            shutil.rmtree(path)
    unfinish(run_of(a, SNIP), 3)
    before = snapshot(a)
    with monkeypatch.context() as patch:
        patch.setattr(merging.shutil, "copyfile", full(count))
        with pytest.raises(
            StoreError, match=r"Cannot copy .* No space left on device. What was there is as before"
        ):
            list(merge([b], Store(a)))
    assert snapshot(a) == before
    assert not (a / ".merging").exists()
    assert ends(b, store=a)["replaced"] == 1


def test_a_run_that_cannot_be_replaced_is_put_back(a, b, monkeypatch):
    unfinish(run_of(a, SNIP), 3)
    folder, rename = run_of(a, SNIP), Path.rename
    before = {path: data for path, data in snapshot(a).items() if path.name != ".lock.owner"}

    def failing(path, target):
        if target == folder and path.name.endswith(".part"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    shutil.rmtree(run_of(b, "random-toy-0.5"))
    shutil.rmtree(run_of(b, "random-toy-0.8"))
    with pytest.raises(StoreError, match=r"Cannot copy .*Input/output error"):
        list(merge([b], Store(a)))
    assert {path: data for path, data in snapshot(a).items() if path.name != ".lock.owner"} == before


KILLED = """
import os, pathlib, shutil, signal, sys
from mtlprune_bench.runs.merge import merge
from mtlprune_bench.store import Store
name, count = sys.argv[3], int(sys.argv[4])
owner = {"rename": pathlib.Path, "copyfile": shutil}[name]
real, calls = getattr(owner, name), []
def killed(*given):
    calls.append(given)
    if len(calls) > count:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*given)
setattr(owner, name, killed)
list(merge([pathlib.Path(sys.argv[1])], Store(pathlib.Path(sys.argv[2]))))
"""


@pytest.mark.parametrize(("name", "count"), [("copyfile", 5), ("rename", 1)])
def test_a_merge_that_is_killed_leaves_a_store_that_can_be_read_and_merged_again(a, b, name, count):
    for path in Store(b).runs():
        if not path.name.startswith(SNIP):
            shutil.rmtree(path)
    folder = run_of(a, SNIP)
    unfinish(folder, 3)
    command = [sys.executable, "-c", KILLED, str(b), str(a), name, str(count)]
    killed = subprocess.run(command, cwd=Path(__file__).parents[1], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert {path.name for path in Store(a).runs()} - {folder.name} == {run_of(a, "toy-finetune").name}
    place = folder if folder.exists() else a / REPLACED / f"{folder.name}.1"
    assert folder.exists() == (name == "copyfile")
    assert merging._step(place / CHECKPOINT) == 3, "what was there is there, or aside"
    assert {"replaced", "copied"} & ends(b, store=a).keys()
    assert values(a).items() >= values(b).items()


def test_the_summary_counts_what_became_of_each(a, b, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    unfinish(run_of(a, SNIP), 3)
    folder = run_of(a, SNIP).name
    assert run_cli(["merge", str(b), "--store", str(a), "--dry-run"]) == 0
    assert f"would be merged into {a}\n" in capsys.readouterr().out
    assert run_cli(["merge", str(b), "--store", str(a)]) == 0
    answer = capsys.readouterr()
    assert f"merged into {a}\n" in answer.out
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in answer.out.splitlines()]
    assert ["from", "what", *ENDS] in lines
    assert [str(b), "runs", "3", "0", "1", "0", "0", "0"] in lines
    assert [str(b), "stages", "1", "0", "0", "0", "0", "0"] in lines
    assert answer.err.startswith(
        f"{folder} replaced: what was there had not come as far; it is kept as {a / REPLACED}"
    )
