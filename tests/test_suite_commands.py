"""`mtlbench suite`: plans, tables, status and retries as a user sees them."""

import os
import re
from pathlib import Path

import pytest

from mtlprune_bench.commands import run_cli
from mtlprune_bench.store import Store, read_rows

PLUGIN = str(Path(__file__).parent / "toy_plugin.py")
SUITE = """
title = "A few"
[run]
dataset = "toy"
seeds = 2
[train]
steps = 6
[finetune]
steps = 2
[methods.disparse-pretrained]
score.batches = 2
[[grid]]
method = ["dense", "snip", "random"]
[[grid]]
method = ["toy-finetune", "disparse-pretrained"]
sparsity = [0.5, 0.8]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    (folder / "few.toml").write_text(SUITE)
    return folder


@pytest.fixture
def mtlbench(capsys, folder, monkeypatch):
    """Return a function that runs `mtlbench suite` in the folder of the suite: exit code, output, errors."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(folder)

    def run(command, *arguments, file="few.toml"):
        code = run_cli(["suite", command, file, "--plugin", PLUGIN, *arguments])
        return code, *capsys.readouterr()

    return run


def numbers(out, name):
    """Return the numbers in the row `name` of a printed table."""
    (line,) = (line for line in out.splitlines() if re.match(rf"│ {name} ", line))
    return [float(cell) for cell in re.findall(r"[\d.]+", line.removeprefix(f"│ {name}"))]


def test_what_a_suite_is_before_during_and_after(mtlbench, folder):
    code, out, _ = mtlbench("plan")
    assert code == 0
    assert out.startswith("A few\n\n")
    assert len(re.findall(r"^dense-toy-s\d-\w+  6 steps, 6 forward, 6 backward$", out, re.M)) == 2
    scores = r"^├─ scores-toy-s\d-\w+  0 steps, 2 forward, 4 backward$"
    assert len(re.findall(scores, out, re.M)) == 2
    below = r"^│  └─ disparse-pretrained at 0.5 0.8: 2 runs, 4 steps, 4 forward, 4 backward$"
    assert len(re.findall(below, out, re.M)) == 2
    assert out.count("─ toy-finetune at 0.5 0.8: 2 runs, 4 steps, 4 forward, 4 backward\n") == 2
    assert "snip at 0.9: 2 runs, 12 steps, 14 forward, 14 backward\n" in out
    assert out.count("─ dense: 1 run, 0 steps, 0 forward, 0 backward\n") == 2
    apart, shared = 2 * (6 + 6 + 6 + 4 * 8), 2 * (6 + 6 + 6 + 4 * 2)
    assert numbers(out, "every run for itself")[0] == apart
    assert numbers(out, "stages shared")[0] == shared
    assert numbers(out, "left to do")[0] == shared
    assert numbers(out, "stages shared")[-1] == pytest.approx(shared / apart, abs=0.005)
    assert "Time: unknown, as no training of this kind is in the store; --measure makes a few steps" in out
    assert not (folder / "runs").exists(), "a plan writes nothing"

    code, out, _ = mtlbench("run", "--dry-run")
    assert (code, numbers(out, "left to do")[0]) == (0, shared)
    assert not (folder / "runs").exists()

    code, out, err = mtlbench("run", "--only", "snip", "--only", "dense", "--only", "random")
    assert code == 0
    assert err.count(" finished\n") == 2 + 2 + 2 + 2
    assert "toy-finetune" not in out

    code, out, _ = mtlbench("plan")
    assert numbers(out, "left to do")[0] == 2 * 4 * 2
    assert "snip at 0.9: 2 runs, 12 steps, 14 forward, 14 backward  done\n" in out
    assert re.search(r"Time: about 0:00:0\d of training and scoring, one job after the other", out)
    code, out, _ = mtlbench("status")
    assert re.search(r"│ dense training +│ 2 ", out)
    assert re.search(r"│ toy-finetune +│ +│ +│ +│ 4 ", out)

    code, out, _ = mtlbench("run")
    assert code == 0
    assert "disparse-pretrained" in out
    code, out, _ = mtlbench("plan")
    assert numbers(out, "left to do")[0] == 0
    assert "All is done." in out
    assert "2 runs, 4 steps, 4 forward, 4 backward  done" in out
    rows = Store(folder / "runs").rows()
    assert rows[rows["metric"] == "steps"]["value"].sum() == apart
    assert mtlbench("retry")[1] == "No run has failed.\n"


def test_failed_runs_are_left_alone_until_they_are_retried(mtlbench, folder, monkeypatch):
    store = ("--store", "failing")
    monkeypatch.setenv("TOY_BROKEN", "1")
    code, _, err = mtlbench("run", *store, "--only", "random")
    assert code == 1
    assert err.count("diverged: The loss of task 'normals' is nan at step 0") == 2
    monkeypatch.delenv("TOY_BROKEN")
    code, out, _ = mtlbench("status", *store)
    assert re.search(r"│ random-toy-0.9-s0-\w+ │ diverged │ The loss of task 'normals'", out)
    code, _, err = mtlbench("run", *store, "--only", "random")
    assert (code, err.count("diverged")) == (1, 2)
    code, _, err = mtlbench("retry", *store)
    assert (code, err.count(" finished\n")) == (0, 2)
    assert all(read_rows(run)[0]["status"] == "finished" for run in Store(folder / "failing").runs())


def test_shards_of_a_suite_are_all_of_it(mtlbench, folder):
    for number in (1, 2):
        assert mtlbench("run", "--store", "shards", "--shard", f"{number}/2", "--only", "*-finetune")[0] == 0
    assert len(Store(folder / "shards").runs()) == 4


def test_a_few_steps_tell_how_long_it_takes(mtlbench, folder):
    code, out, _ = mtlbench("plan", "--measure", "--store", "unmeasured")
    assert code == 0
    assert re.search(r"Time: about 0:0\d:\d\d of training and scoring", out)
    assert not (folder / "unmeasured").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds = 2", "seed = 2"), "Unknown key in [run] 'seed'. Did you mean 'seeds'?"),
        (('"snip",', '"snap",'), "Unknown method 'snap'. Did you mean 'snip'?"),
        (("[0.5, 0.8]", "[]"), "grid 2"),
        (('"snip",', '"snip", "snip",'), "grid 1 twice"),
        (('"dense", "snip"', '"dense", "toy-finetune"'), "Time"),
        (("steps = 6", "steps = 0"), "steps of a recipe is 0"),
        (("[train]", "[training]"), "Unknown key in a suite 'training'. Did you mean 'train'?"),
    ],
)
def test_a_wrong_file_is_one_line_before_anything_runs(mtlbench, folder, change, message):
    text = SUITE.replace(*change)
    assert text != SUITE
    (folder / "wrong.toml").write_text(text)
    code, out, err = mtlbench("plan", "--store", "wrong", file="wrong.toml")
    if message == "Time":
        assert (code, out.count("toy-finetune at 0.5 0.8 0.9")) == (0, 2), "another sparsity is another run"
        return
    assert code == 2
    assert message in err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert not (folder / "wrong").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--runner", "cluster"), "Unknown runner 'cluster'"),
        (("--set", "runner.worker=2"), "Unknown setting 'runner.worker'. Did you mean 'runner.workers'?"),
        (("--only", "nothing"), "No run fits nothing"),
        (("--shard", "5/2"), "Shard '5/2' is no part of a whole"),
        (("--set", "engine.device=cuda:7"), "There is no device 'cuda:7'"),
    ],
)
def test_a_wrong_option_is_one_line_before_anything_runs(mtlbench, folder, arguments, message):
    code, _, err = mtlbench("run", "--store", "options", *arguments)
    assert code == 2
    assert message in err.splitlines()[-1]
    assert not (folder / "options").exists()


@pytest.mark.skipif(
    os.geteuid() == 0 and not Path("/dev/full").exists(), reason="needs a place that cannot be written"
)
def test_a_store_that_cannot_be_written_is_named_before_anything_runs(mtlbench):
    code, _, err = mtlbench("run", "--store", "/proc/nothing")
    assert code == 1
    assert "/proc/nothing" in err.splitlines()[-1]
    assert " finished" not in err
