"""Leftovers: what a run may need, what is in use and what was set aside stay; only the rest is removed."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from mtlprune_bench.commands import run_cli
from mtlprune_bench.errors import StoreError, UsageError
from mtlprune_bench.files import locked
from mtlprune_bench.runs.leftovers import HOUR, MERGING, REPLACED, leftovers, remove
from mtlprune_bench.store import LOCK, Store, read_rows, write_json, write_rows

PLUGIN = str(Path(__file__).parent / "toy_plugin.py")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a store with a run that needs a dense training, and two that share scores."""
    folder = tmp_path_factory.mktemp("made") / "runs"
    options = ("--plugin", PLUGIN, "--dataset", "toy", "--set", "train.steps=4", "--set", "finetune.steps=2")
    for method, sparsity in (("toy-finetune", "0.5"), ("snip", "0.5,0.8")):
        asked = ("--method", method, "--sparsity", sparsity)
        assert run_cli(["run", *options, *asked, "--store", str(folder)]) == 0
    return folder


@pytest.fixture
def store(made, tmp_path):
    """Return a copy of that store."""
    return Store(Path(shutil.copytree(made, tmp_path / "runs")))


def stage(store, kind):
    (folder,) = store.folder.glob(f"stages/{kind}-*")
    return folder


def listed(store, **options):
    """Return the leftovers of a store as (path in the store, why it is kept)."""
    return [(str(item.path.relative_to(store.folder)), item.kept) for item in leftovers(store, **options)[0]]


def left_behind(path, age=2 * HOUR):
    """Make a temporary file that was written to `age` seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    return path


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_what_runs_refer_to_is_needed(store):
    assert stage(store, "dense").is_dir()
    assert stage(store, "scores").is_dir()
    assert leftovers(store) == ([], [])


def test_a_stage_is_not_needed_when_the_last_run_that_refers_to_it_is_gone(store):
    shutil.rmtree(store.find("toy-finetune"))
    shutil.rmtree(store.find("snip-toy-0.5"))
    dense, scores = stage(store, "dense"), stage(store, "scores")
    ((item,), unclear) = leftovers(store)
    assert (item.path, item.kept, unclear) == (dense, "", [])
    assert item.size == sum(path.stat().st_size for path in dense.iterdir())
    assert 0 <= item.age < HOUR
    shutil.rmtree(store.find("snip-toy-0.8"))
    assert remove(item)
    assert not dense.exists()
    assert listed(store) == [(f"stages/{scores.name}", "")]


def test_nothing_changes_before_removal_is_asked_for(store, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    shutil.rmtree(store.find("toy-finetune"))
    left_behind(store.find("snip-toy-0.5") / ".rows.parquet.abc.part")
    before = snapshot(store.folder)
    assert run_cli(["gc", "--store", str(store.folder)]) == 0
    assert snapshot(store.folder) == before
    size = sum(path.stat().st_size for path in stage(store, "dense").iterdir()) + 4
    said = capsys.readouterr().out
    assert f"--remove frees {size / 1000:.1f} kB." in said
    assert run_cli(["gc", "--store", str(store.folder), "--remove"]) == 0
    assert f"Freed {size / 1000:.1f} kB." in capsys.readouterr().out
    gone = {path for path in before if path not in snapshot(store.folder)}
    assert {path.name for path in gone if "dense-" not in str(path)} == {".rows.parquet.abc.part"}
    assert [path.name for path in gone if path.is_dir()] == []
    assert not list(store.folder.glob("stages/*dense*"))
    assert listed(store) == []


@pytest.mark.parametrize("plan", [None, "{damaged", '{"updates": []}', '{"stages": "dense"}', "[]"])
@pytest.mark.filterwarnings("ignore:.*plan.json is damaged")
def test_nothing_is_removed_while_it_is_not_known_what_a_run_needs(store, capsys, plan):
    shutil.rmtree(store.find("toy-finetune"))
    unclear = store.find("snip-toy-0.8")
    (unclear / "plan.json").unlink()
    if plan is not None:
        (unclear / "plan.json").write_text(plan)
    part = left_behind(store.find("snip-toy-0.5") / ".rows.parquet.abc.part")
    assert run_cli(["gc", "--store", str(store.folder), "--remove"]) == 1
    answer = capsys.readouterr()
    assert "Freed 0 bytes." in answer.out
    assert "Nothing can be removed" in answer.err
    assert unclear.name in answer.err
    assert store.find("snip-toy-0.5").name not in answer.err
    assert stage(store, "dense").is_dir()
    assert part.exists()
    reasons = {kept for path, kept in listed(store) if "damaged" not in path}
    assert reasons == {f"{unclear.name} does not say which stages it needs"}


def test_a_run_that_lost_its_configuration_still_needs_its_stages(store):
    (store.find("toy-finetune") / "config.json").unlink()
    assert listed(store) == []


def test_a_stage_in_use_is_never_removed(store):
    shutil.rmtree(store.find("toy-finetune"))
    ((free,), _) = leftovers(store)
    with locked(free.path / LOCK, print):
        assert listed(store) == [(f"stages/{free.path.name}", "a process is working on it")]
        assert not remove(free), "the lock is looked at when it is removed, too"
        assert free.path.is_dir()
    assert remove(free)


def test_a_stage_that_a_later_run_may_need_is_kept_while_a_process_is_at_work(store):
    shutil.rmtree(store.find("toy-finetune"))
    run = store.find("snip-toy-0.8")
    with locked(run / LOCK, print):
        ((_, kept),) = listed(store)
    assert kept == f"a process is working on {run.name}: a run that comes later may need it"
    assert listed(store) == [(f"stages/{stage(store, 'dense').name}", "")]


def test_scores_go_when_asked_for_and_all_their_runs_have_finished(store, capsys):
    scores, run = stage(store, "scores"), store.find("snip-toy-0.8")
    assert listed(store) == []
    assert listed(store, scores=True) == [(f"stages/{scores.name}", "")]
    rows = read_rows(run)
    for left in ([rows[0] | {"status": "failed"}], None):
        write_rows(run, left) if left else (run / "rows.parquet").unlink()
        assert listed(store, scores=True) == []
    write_rows(run, rows)
    assert run_cli(["gc", "--store", str(store.folder), "--scores", "--remove"]) == 0
    assert not scores.exists()
    assert stage(store, "dense").is_dir(), "dense trainings are kept"


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("snip-run/.weights.safetensors.ab.part", True),
        ("snip-run/round-1/.weights.safetensors.ab.part", True),
        ("stages/dense-stage/.weights.safetensors.ab.part", True),
        (f"{MERGING}/.run.ab.part/weights.safetensors", True),
        ("stages/.dense-stage.12.part/weights.safetensors", True),
        (".plan.ab.part", True),
        ("notes/.film.ab.part", False),
        ("snip-run/weights.part", False),
    ],
)
def test_what_killed_writers_left_behind_is_found_where_ours_write(store, place, found):
    place = place.replace("snip-run", store.find("snip-toy-0.5").name)
    path = left_behind(store.folder / place.replace("dense-stage", stage(store, "dense").name))
    top = path.parent if path.parent.name.endswith(".part") else path
    os.utime(top, (time.time() - 2 * HOUR,) * 2)
    assert listed(store) == ([(str(top.relative_to(store.folder)), "")] if found else [])
    assert run_cli(["gc", "--store", str(store.folder), "--remove"]) == 0
    assert top.exists() != found


@pytest.mark.parametrize("folder", ["", "round-1"])
def test_a_temporary_file_that_may_be_being_written_is_left(store, folder):
    run = store.find("snip-toy-0.5")
    path = left_behind(run / folder / ".rows.parquet.ab.part", HOUR - 60)
    assert listed(store) == []
    left_behind(path)
    with locked(run / LOCK, print):
        assert listed(store) == []
    assert len(listed(store)) == 1


def test_a_folder_is_as_old_as_the_last_change_in_it(store):
    file = left_behind(store.folder / MERGING / ".run.ab.part" / "weights.safetensors", 60)
    os.utime(file.parent, (time.time() - 2 * HOUR,) * 2)
    assert listed(store) == []


def test_what_was_set_aside_is_named_and_left(store, capsys):
    run, dense = store.find("snip-toy-0.5"), stage(store, "dense")
    shutil.rmtree(store.find("toy-finetune"))
    aside = [
        store.folder / REPLACED / "run.1" / "config.json",
        run / "rows.parquet.damaged-1",
        dense / "weights.safetensors.damaged-2",
    ]
    for path in aside:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    by_hand = "look at it, and remove it by hand"
    assert listed(store) == [
        (f"stages/{dense.name}", "files in it were set aside"),
        (f"{REPLACED}/run.1", by_hand),
        (f"{run.name}/rows.parquet.damaged-1", by_hand),
        (f"stages/{dense.name}/weights.safetensors.damaged-2", by_hand),
    ]
    assert run_cli(["gc", "--store", str(store.folder), "--remove"]) == 0
    assert all(path.exists() for path in aside)
    assert "Freed 0 bytes." in capsys.readouterr().out


def test_a_removal_that_is_stopped_leaves_no_half_stage(store, monkeypatch):
    shutil.rmtree(store.find("toy-finetune"))
    ((item,), _) = leftovers(store)

    def stopped(path):
        (path / "weights.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mtlprune_bench.runs.leftovers.shutil.rmtree", stopped)
        with pytest.raises(KeyboardInterrupt):
            remove(item)
    assert not item.path.exists()
    (half,) = store.folder.glob("stages/.dense-*.part")
    assert listed(store) == []
    for path in [*half.iterdir(), half]:
        os.utime(path, (time.time() - 2 * HOUR,) * 2)
    assert listed(store) == [(f"stages/{half.name}", "")]
    assert remove(leftovers(store)[0][0])
    assert not half.exists()


def test_what_cannot_be_removed_is_named(store, monkeypatch):
    shutil.rmtree(store.find("toy-finetune"))
    ((item,), _) = leftovers(store)

    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mtlprune_bench.runs.leftovers.shutil.rmtree", refused)
    with pytest.raises(StoreError, match=r"Cannot remove .*dense-.*: Permission denied. Remove it by hand"):
        remove(item)


def test_a_folder_that_is_no_store_is_refused(tmp_path, capsys):
    part = left_behind(tmp_path / ".download.part")
    with pytest.raises(UsageError, match=rf"There is no store in {tmp_path}. Name the folder"):
        leftovers(Store(tmp_path))
    assert run_cli(["gc", "--store", str(tmp_path), "--remove"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert part.exists()


def test_the_list_says_what_how_much_and_how_old(store, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    write_json(store.find("toy-finetune") / "plan.json", {"stages": []})
    dense = stage(store, "dense")
    for path in [*dense.iterdir(), dense]:
        os.utime(path, (time.time() - 36 * HOUR,) * 2)
    size = sum(path.stat().st_size for path in dense.iterdir())
    assert run_cli(["gc", "--store", str(store.folder)]) == 0
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert ["path", "what", "size", "age", "why"] in lines
    assert [f"stages/{dense.name}", "stage", f"{size / 1000:.1f} kB", "1.5 days", "not needed"] in lines
    assert json.loads((store.find("snip-toy-0.5") / "plan.json").read_text())["stages"], "runs say what they need"
