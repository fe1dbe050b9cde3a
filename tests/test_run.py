"""Runs: the same bytes however often they are interrupted, stages shared, failures kept as rows."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.pruning.masks import sparsity
from mtlprune_bench.runs.config import Engine
from mtlprune_bench.runs.pipeline import START_MASKS
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.suite import prepare_all, run_all
from mtlprune_bench.store import Store, read_history, read_rows
from mtlprune_bench.training.checkpoint import WEIGHTS, load_masks, load_tensors

PLUGIN = str(Path(__file__).parent / "toy_plugin.py")
SILENT = {"notify": lambda text: None}


@pytest.fixture(scope="module")
def registry():
    return load_registry([PLUGIN])


def request(method="snip", sparsity=0.8, seed=0, **rest):
    return Request(method=method, dataset="toy", sparsity=sparsity, seed=seed, **rest)


def run(store, registry, *requests):
    """Execute requests and return the folder of each run."""
    outcomes = list(run_all(requests, Store(store), registry, **SILENT))
    assert all(outcome.good for outcome in outcomes), outcomes
    return [store / experiment.config.run_id for experiment in prepare_all(requests, registry, **SILENT)]


def value(folder, metric, task="", component="", split=""):
    found = [
        row["value"]
        for row in read_rows(folder)
        if (row["metric"], row["task"], row["component"], row["split"]) == (metric, task, component, split)
    ]
    assert len(found) == 1
    return found[0]


def stored(folder, name):
    """Return the bytes of a file; of rows those that have to be the same on every machine."""
    if name == "rows.parquet":
        return [row for row in read_rows(folder) if row["metric"] not in ("seconds", "peak_memory")]
    return (folder / name).read_bytes()


def test_a_run_leaves_everything_that_is_needed_to_repeat_it(tmp_path, registry):
    (folder,) = run(tmp_path, registry, request("disparse-static", settings={"method": {"score": {"batches": 2}}}))
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {
        "config.json",
        "environment.json",
        "plan.json",
        "request.json",
        "start-masks.safetensors",
        "masks.safetensors",
        "weights.safetensors",
        "rows.parquet",
        "history.jsonl",
        "cost.json",
    }
    environment = json.loads((folder / "environment.json").read_text())[-1]
    assert torch.__version__.startswith(environment["packages"]["torch"])
    assert [entry["step"] for entry in read_history(folder / "history.jsonl")] == list(range(30))


@pytest.mark.parametrize(
    "method", ["random", "snip", "disparse-static", "toy-finetune", "toy-lottery", "toy-late"]
)
@pytest.mark.parametrize("asked", [0.0, 0.37, 0.95])
def test_sparsity_reached_is_sparsity_asked_in_masks_weights_and_rows(tmp_path, registry, method, asked):
    settings = {"train": {"steps": 12}, "finetune": {"steps": 3}}
    if method == "disparse-static":
        settings["method"] = {"score": {"batches": 2}}
    (folder,) = run(tmp_path, registry, request(method, asked, settings=settings))
    masks = load_masks(folder / "masks.safetensors")
    count = sum(mask.numel() for mask in masks.values())
    assert abs(sparsity(masks) - asked) <= 1 / count
    assert value(folder, "sparsity", component="whole") == sparsity(masks)
    weights, _ = load_tensors(folder / WEIGHTS)
    assert all((weights[name][~mask] == 0).all() for name, mask in masks.items())


def test_learning_reaches_more_than_chance(tmp_path, registry):
    (folder,) = run(tmp_path, registry, request("dense", settings={"train": {"steps": 120}}))
    assert value(folder, "pixel_accuracy", "segmentation", split="test") > 0.6
    assert value(folder, "sparsity", component="whole") == 0
    assert value(folder, "loss", split="train") < 2


def test_a_finished_run_is_not_run_again(tmp_path, registry):
    (folder,) = run(tmp_path, registry, request())
    before = {path: path.stat().st_mtime_ns for path in folder.glob("[!.]*")}
    run(tmp_path, registry, request())
    assert {path: path.stat().st_mtime_ns for path in folder.glob("[!.]*")} == before


def test_dense_training_is_done_once_for_all_that_start_from_it(tmp_path, registry):
    folders = run(
        tmp_path,
        registry,
        request("dense"),
        request("dense", sparsity=0.5),
        request("toy-finetune"),
        request("toy-lottery", sparsity=0.5),
    )
    assert len(folders) == 3, "dense has one run, whatever sparsity is asked for"
    (stage,) = (tmp_path / "stages").iterdir()
    assert len((stage / "history.jsonl").read_text().splitlines()) == 30
    dense, _ = load_tensors(stage / WEIGHTS)
    pruned, _ = load_tensors(folders[1] / WEIGHTS)
    assert dense.keys() == pruned.keys()


def test_a_lottery_ticket_starts_from_the_initial_weights_and_the_trained_ones_decide(tmp_path, registry):
    one_step = {"train": {"steps": 30}}
    (folder,) = run(tmp_path, registry, request("toy-lottery", 0.5, settings=one_step))
    (stage,) = (tmp_path / "stages").iterdir()
    trained, _ = load_tensors(stage / WEIGHTS)
    masks = load_masks(folder / START_MASKS)
    kept = torch.cat([trained[name][mask].abs() for name, mask in masks.items()])
    removed = torch.cat([trained[name][~mask].abs() for name, mask in masks.items()])
    assert kept.min() >= removed.max()
    (experiment,) = prepare_all([request("toy-lottery", 0.5, settings=one_step)], registry, lambda text: None)
    first = experiment.build_model(torch.device("cpu"))
    second = experiment.build_model(torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_masks_made_on_the_way_reach_the_sparsity_and_hold(tmp_path, registry):
    (folder,) = run(tmp_path, registry, request("toy-late", 0.6))
    assert not (folder / START_MASKS).exists()
    assert value(folder, "sparsity", component="whole") == pytest.approx(0.6, abs=1e-3)


def test_seeds_differ_and_repeat(tmp_path, registry):
    one = run(tmp_path / "a", registry, request(seed=0), request(seed=1))
    two = run(tmp_path / "b", registry, request(seed=0), request(seed=1))
    for first, second in zip(one, two, strict=True):
        for name in ("masks.safetensors", "weights.safetensors", "rows.parquet", "history.jsonl"):
            assert stored(first, name) == stored(second, name), name
    assert (one[0] / "masks.safetensors").read_bytes() != (one[1] / "masks.safetensors").read_bytes()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_reading_in_other_processes_changes_nothing(tmp_path, registry, workers):
    (alone,) = run(tmp_path / "a", registry, request())
    (helped,) = run(tmp_path / "b", registry, request(settings={"engine": {"workers": workers}}))
    assert alone.name == helped.name
    assert stored(alone, "rows.parquet") == stored(helped, "rows.parquet")


QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
COMMAND = [
    *(
        sys.executable,
        "-c",
        "import torch; torch.set_num_threads(1); from mtlprune_bench.commands import main; main()",
    ),
    *("run", "--plugin", PLUGIN, "--dataset", "toy", "--sparsity", "0.8", "--set", "train.steps=150"),
    *("--set", "engine.checkpoint_seconds=0", "--set", "finetune.steps=60"),
]


@pytest.mark.parametrize(
    ("method", "protocol", "settings"),
    [
        ("snip", "standard", ()),
        ("snip", "disparse", ()),
        ("toy-late", "standard", ()),
        ("toy-finetune", "standard", ()),
        ("disparse-dynamic", "standard", ()),
        ("disparse-dynamic", "disparse", ("method.variant=release",)),
        ("lth-iterative", "standard", ("method.schedule.rate=0.6", "train.steps=60")),
        ("adapmtl", "standard", ("method.s_init=-6",)),
    ],
)
def test_a_run_killed_at_any_step_ends_as_if_it_had_not_been(tmp_path, method, protocol, settings):
    options = ["--method", method, "--protocol", protocol, *(f"--set={line}" for line in settings)]
    subprocess.run([*COMMAND, *options, "--store", str(tmp_path / "whole")], check=True, capture_output=True)
    killed = 0
    for attempt in range(20):
        process = subprocess.Popen([*COMMAND, *options, "--store", str(tmp_path / "killed")], **QUIET)
        deadline = time.monotonic() + 60
        goal = 60 * (attempt + 1)
        while process.poll() is None and time.monotonic() < deadline and _steps(tmp_path / "killed") < goal:
            time.sleep(0.002)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
    assert process.wait() == 0
    assert killed >= 2
    (whole,) = Store(tmp_path / "whole").runs()
    (pieces,) = Store(tmp_path / "killed").runs()
    for name in ("masks.safetensors", "weights.safetensors", "rows.parquet"):
        assert stored(whole, name) == stored(pieces, name), name
    assert list(read_history(whole / "history.jsonl")) == list(read_history(pieces / "history.jsonl"))


def _steps(store):
    """Return how many steps all trainings of a store have written down."""
    return sum(len(path.read_bytes().splitlines()) for path in store.rglob("history.jsonl"))


def test_a_loss_that_is_not_finite_is_a_row_and_may_be_tried_again(tmp_path, registry, monkeypatch):
    monkeypatch.setenv("TOY_BROKEN", "1")
    store = Store(tmp_path)
    (outcome,) = run_all([request("random")], store, registry, **SILENT)
    assert outcome.status == "diverged"
    assert "task 'normals' is nan at step 0" in outcome.reason
    (row,) = read_rows(tmp_path / outcome.name)
    assert (row["status"], row["method"], row["metric"]) == ("diverged", "random", "")
    monkeypatch.delenv("TOY_BROKEN")
    run(tmp_path, registry, request("random"))


def test_one_failure_does_not_stop_the_others(tmp_path, registry):
    @dataclass(frozen=True)
    class Broken:
        name: str = "broken"

        def passes(self, voters):
            return 0, 0

        def __call__(self, scoring):
            raise RuntimeError("no scores today")

    from mtlprune_bench import Method, once

    registry = load_registry([PLUGIN])
    registry.add("methods", Method(name="broken", score=Broken(), schedule=once()), "test", "test", None)
    outcomes = list(run_all([request("broken"), request("random")], Store(tmp_path), registry, **SILENT))
    assert [outcome.status for outcome in outcomes] == ["failed", "finished"]
    assert (tmp_path / outcomes[0].name / "error.log").read_text().startswith("Traceback")


@pytest.mark.parametrize("name", ["checkpoint", "rows", "start-masks", "masks", "weights"])
def test_a_damaged_file_is_moved_aside_and_made_again(tmp_path, registry, name):
    (whole,) = run(tmp_path / "a", registry, request())
    (folder,) = run(tmp_path / "b", registry, request())
    file = next(iter(folder.glob(f"{name}.*")), folder / f"{name}.safetensors")
    data = (file if file.exists() else folder / WEIGHTS).read_bytes()
    data = data[: len(data) // 2] + b"!" + data[len(data) // 2 + 1 :] if name != "rows" else data[:-9]
    (folder / "rows.parquet").unlink()
    if name in ("checkpoint", "start-masks"):
        (folder / WEIGHTS).unlink()
    file.write_bytes(data)
    with pytest.warns(UserWarning, match=f"{file.name} is damaged.*made again"):
        run(tmp_path / "b", registry, request())
    assert (folder / f"{file.name}.damaged-1").read_bytes() == data
    for left in ("masks.safetensors", "weights.safetensors", "rows.parquet"):
        assert stored(whole, left) == stored(folder, left)


def test_two_processes_on_one_run_take_turns(tmp_path):
    command = [*COMMAND, "--method", "snip", "--store", str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("waiting until it ends" in error for error in errors) <= 1
    (folder,) = Store(tmp_path).runs()
    assert len((folder / "history.jsonl").read_text().splitlines()) == 150


def test_observers_see_everything_and_change_nothing(tmp_path, registry, capfd):
    seen = []

    class Observer:
        from mtlprune_bench import hookimpl

        @hookimpl
        def step_finished(self, run, step, losses):
            seen.append(("step", step))
            losses.clear()
            torch.manual_seed(0)

        @hookimpl
        def masks_updated(self, run, step, before, after):
            seen.append(("masks", step))
            for mask in after.values():
                mask.fill_(False)

        @hookimpl
        def model_evaluated(self, run, step, rows):
            seen.append(("evaluated", step))
            rows.clear()
            raise ValueError("an observer's own problem")

    watched = load_registry([PLUGIN])
    watched.manager.register(Observer(), "watcher")
    (alone,) = run(tmp_path / "a", registry, request("toy-late"))
    with pytest.warns(UserWarning, match="Observer 'watcher' failed in model_evaluated.*run goes on"):
        (observed,) = run(tmp_path / "b", watched, request("toy-late"))
    assert seen == [
        *(("step", i) for i in range(10)),
        ("masks", 10),
        *(("step", i) for i in range(10, 30)),
        ("evaluated", 30),
    ]
    for name in ("masks.safetensors", "weights.safetensors", "rows.parquet"):
        assert stored(alone, name) == stored(observed, name)


def test_the_release_variant_keeps_its_ratio_and_reports_what_came_out(tmp_path, registry):
    settings = {"method": {"variant": "release", "score": {"batches": 2}, "calibration": {"keep_ratio": 0.2}}}
    (folder,) = run(tmp_path, registry, request("disparse-static", settings=settings))
    reached = value(folder, "sparsity", component="whole")
    assert reached != 0.8
    assert 0.6 < reached < 0.85
    assert read_rows(folder)[0]["settings"] == ("score.batches=2 score.forward=per-voter calibration=fixed-ratio")


def test_an_unwritable_store_is_said_before_anything_runs(tmp_path, registry):
    file = tmp_path / "file"
    file.write_text("")
    from mtlprune_bench.errors import StoreError

    with pytest.raises(StoreError, match=r"Cannot write .*Choose another folder|Free some space"):
        run(file / "store", registry, request())
    assert list(tmp_path.iterdir()) == [file]


def test_engine_settings_are_not_part_of_a_run(registry):
    plain, other = (
        prepare_all([request(settings=settings)], registry, lambda text: None)[0].config.run_id
        for settings in ({}, {"engine": {"checkpoint_seconds": 1}})
    )
    assert plain == other
    assert Engine().device == "auto"
