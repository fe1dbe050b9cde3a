"""Suites: stages that runs share are made once, what failed stays failed, and results do not depend on either."""

import json
import pickle
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mtlprune_bench import Method, UsageError, once
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.runs.config import Engine
from mtlprune_bench.runs.jobs import Outcome, Slot, graph, lost
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.suite import chosen, execute_all, failed, prepare_all, remaining, run_all, status_of
from mtlprune_bench.runs.worker import Worker
from mtlprune_bench.store import Store, read_history, read_rows
from mtlprune_bench.training.checkpoint import SCORES, WEIGHTS, load_scores, save_scores

PLUGIN = str(Path(__file__).parent / "toy_plugin.py")
SILENT = {"notify": lambda text: None}
SHORT = {"train": {"steps": 6}, "finetune": {"steps": 2}}


@pytest.fixture(scope="module")
def registry():
    return load_registry([PLUGIN])


def request(method, sparsity=0.8, seed=0, dataset="toy", **method_settings):
    settings = {**SHORT, "method": method_settings} if method_settings else SHORT
    return Request(method=method, dataset=dataset, sparsity=sparsity, seed=seed, settings=settings)


def static(sparsity, **more):
    return request("disparse-static", sparsity, score={"batches": 2}, **more)


def prepared(registry, *requests):
    return prepare_all(requests, registry, **SILENT)


def results(folder):
    """Return the rows of a run that are the same on every machine, and the bytes of its masks and weights."""
    rows = [row for row in read_rows(folder) if row["metric"] not in ("seconds", "peak_memory")]
    return rows, *((folder / name).read_bytes() for name in ("masks.safetensors", "weights.safetensors"))


# The graph


def test_runs_that_start_from_one_dense_network_wait_for_the_same_job(registry):
    found = prepared(
        registry, *(request(m, s) for m in ("toy-finetune", "toy-lottery", "dense") for s in (0.5, 0.8))
    )
    jobs = {job.name: job for job in graph(found)}
    (dense,) = (job for job in jobs.values() if job.kind == "dense training")
    assert dense.cost.steps == 6
    assert len(jobs) == 1 + 5, "dense has one run at both sparsities"
    assert all(job.needs == (dense.name,) for job in jobs.values() if job is not dense)
    assert {job.request.method: job.cost.steps for job in jobs.values() if job is not dense} == {
        "toy-finetune": 2,
        "toy-lottery": 6,
        "dense": 0,
    }


def test_scores_are_a_job_where_runs_differ_in_sparsity_arbiter_or_allocation_only(registry):
    apart = [static(0.5), request("disparse-static", 0.5, score={"batches": 3}), replace(static(0.5), seed=1)]
    assert [job.kind for job in graph(prepared(registry, *apart))] == ["run"] * 3
    together = [
        static(0.5),
        static(0.8),
        request("disparse-static", score={"batches": 2}, arbiter="and"),
        request("disparse-static", score={"batches": 2}, allocation="erk"),
    ]
    jobs = graph(prepared(registry, *together))
    assert [job.kind for job in jobs] == ["scores", *["run"] * 4]
    assert jobs[0].cost.backward == 2 * 2, "two batches, two tasks"
    assert all(job.cost.backward == 6 for job in jobs[1:]), "training alone"


@pytest.mark.parametrize("method", ["random", "lth", "synflow", "gmp", "rigl", "adapmtl", "dense"])
def test_what_takes_no_passes_or_depends_on_the_sparsity_is_not_shared_as_scores(registry, method):
    settings = {"rounds": 3} if method == "synflow" else {}
    found = prepared(registry, *(request(method, sparsity, **settings) for sparsity in (0.5, 0.8)))
    assert {experiment.scores_key for experiment in found} == {""}


def test_scores_of_trained_weights_come_after_the_dense_training(registry):
    found = prepared(registry, *(request("disparse-pretrained", s, score={"batches": 2}) for s in (0.5, 0.8)))
    jobs = graph(found)
    assert [job.kind for job in jobs] == ["dense training", "scores", "run", "run"]
    assert jobs[1].needs == (jobs[0].name,)


def test_late_rewinding_has_a_stage_of_its_own(registry):
    (experiment,) = prepared(registry, request("lth", start={"rewind": 2}))
    dense, short, run = sorted(graph([experiment]), key=lambda job: (job.kind, -job.cost.steps))
    assert (short.rewind, short.cost.steps, dense.rewind) == (2, 2, 0)
    assert set(run.needs) == {dense.name, short.name}
    assert set(experiment.stages) == {dense.name, short.name}


def test_jobs_that_hold_up_most_come_first(registry):
    found = prepared(registry, request("snip"), request("toy-finetune"), request("lth-iterative"), static(0.5))
    jobs = graph(found)
    assert [job.kind for job in jobs] == ["dense training", *["run"] * 4]
    costs = [job.cost.backward for job in jobs[1:]]
    assert costs == sorted(costs, reverse=True)


# Sharing


@pytest.fixture(scope="module")
def grid():
    return [
        *(static(sparsity) for sparsity in (0.5, 0.8)),
        *(request("disparse-pretrained", sparsity, score={"batches": 2}) for sparsity in (0.5, 0.8)),
        *(request("disparse-static", 0.8, score={"batches": 2}, arbiter="and") for _ in range(1)),
        request(
            "disparse-static", 0.8, score={"batches": 2}, calibration={"name": "fixed-ratio", "keep_ratio": 0.3}
        ),
        request("dense"),
    ]


@pytest.fixture(scope="module")
def shared(tmp_path_factory, registry, grid):
    store = Store(tmp_path_factory.mktemp("shared"))
    outcomes = list(run_all(grid, store, registry, **SILENT))
    assert all(outcome.good for outcome in outcomes), outcomes
    return store


def test_shared_stages_change_no_number(tmp_path, registry, grid, shared):
    for number, asked in enumerate(grid):
        alone = Store(tmp_path / str(number))
        outcomes = list(run_all([asked], alone, registry, **SILENT))
        assert outcomes[-1].good
        assert not list(alone.folder.glob("stages/scores-*")), "a run by itself keeps no scores"
        name = outcomes[-1].name
        if asked.method == "dense":
            assert read_rows(shared.run_folder(name))[0] == read_rows(alone.run_folder(name))[0]
        else:
            assert results(shared.run_folder(name)) == results(alone.run_folder(name))


def test_steps_made_are_those_planned_and_rows_say_what_each_run_takes_by_itself(registry, grid, shared):
    found = prepared(registry, *grid)
    made = sum(len(list(read_history(path))) for path in shared.folder.rglob("history.jsonl"))
    assert made == sum(job.cost.steps for job in graph(found))
    rows = shared.rows()
    apart = rows[rows["metric"] == "steps"]["value"].sum()
    assert apart == 4 * 6 + 2 * (6 + 2) + 6
    assert made == 4 * 6 + 2 * 2 + 6


def test_seconds_of_shared_scores_count_for_every_run_that_uses_them(shared):
    for folder in shared.runs():
        costs = json.loads((folder / "cost.json").read_text()) if (folder / "cost.json").exists() else {}
        keys = json.loads((folder / "plan.json").read_text())["stages"]
        scored = [key for key in keys if key.startswith("scores")]
        if scored:
            stage = json.loads((shared.stage_folder(scored[0]) / "cost.json").read_text())
            assert costs[SCORES]["seconds"] == stage[SCORES]["seconds"] > 0


def test_a_damaged_stage_is_made_again_by_the_run_that_needs_it(tmp_path, registry):
    store = Store(tmp_path)
    asked = [static(0.5), static(0.8)]
    first = list(run_all(asked, store, registry, **SILENT))
    before = results(store.run_folder(first[-1].name))
    (stage,) = store.folder.glob("stages/scores-*")
    (stage / SCORES).write_bytes(b"no scores")
    for file in store.run_folder(first[-1].name).glob("*.*"):
        file.unlink()
    with pytest.warns(UserWarning, match="scores.safetensors is damaged"):
        outcomes = list(run_all(asked, store, registry, **SILENT))
    assert all(outcome.good for outcome in outcomes)
    assert results(store.run_folder(first[-1].name)) == before


def test_scores_are_read_as_they_were_written(tmp_path):
    import torch

    scores = {
        "a task": {"trunk.0.weight": torch.rand(2, 3), "heads.a.weight": torch.rand(4).double()},
        "b.c": {"trunk.0.weight": torch.rand(2, 3)},
        "d": {},
    }
    save_scores(tmp_path / "scores", scores)
    back = load_scores(tmp_path / "scores")
    assert list(back) == list(scores)
    for voter, own in scores.items():
        assert set(own) == set(back[voter])
        assert all(torch.equal(own[name], back[voter][name]) for name in own)
        assert all(own[name].dtype == back[voter][name].dtype for name in own)
    assert load_scores(tmp_path / "nothing") is None


# Failures


def test_a_failed_stage_fails_the_runs_that_need_it_with_its_reason_and_no_others(tmp_path, registry, monkeypatch):
    store = Store(tmp_path)
    asked = [request("toy-finetune", 0.5), request("toy-finetune", 0.8), request("random")]
    monkeypatch.setenv("TOY_BROKEN", "1")
    outcomes = {outcome.name: outcome for outcome in run_all(asked, store, registry, **SILENT)}
    (dense,) = (outcome for outcome in outcomes.values() if outcome.name.startswith("dense"))
    assert dense.status == "diverged"
    runs = [store.run_folder(name) for name in outcomes if name.startswith("toy")]
    for folder in runs:
        (row,) = read_rows(folder)
        assert row["status"] == "failed"
        assert row["reason"].startswith(
            f"{dense.name}, which it needs, diverged: The loss of task 'normals' is nan"
        )
    monkeypatch.delenv("TOY_BROKEN")
    found = prepared(registry, *asked)
    assert len(failed(found, store)) == 3
    assert remaining(found, store, retry=False) == []
    left = list(execute_all(found, store, registry, {}, retry=False))
    assert {outcome.status for outcome in left} == {"failed", "diverged"}
    again = list(execute_all(found, store, registry, {}, retry=True))
    assert all(outcome.good for outcome in again)
    assert failed(found, store) == []


def test_a_run_whose_process_died_is_a_row_with_the_reason(tmp_path, registry):
    @dataclass(frozen=True)
    class Deadly:
        name: str = "deadly"

        def __call__(self, jobs, work):
            for job in jobs:
                yield lost(job, "Its process was killed.") if job.kind == "run" else work(job, [], Slot())

    fresh = load_registry([PLUGIN])
    fresh.add("runners", Deadly(), "test", "test", None)
    asked = request("toy-finetune")
    asked = replace(asked, settings={**asked.settings, "runner": {"name": "deadly"}})
    store = Store(tmp_path)
    stage, run = run_all([asked], store, fresh, **SILENT)
    assert stage.good
    (row,) = read_rows(store.run_folder(run.name))
    assert row["reason"] == f"Its process was killed. Its log is worker.log in the folder of {run.name}."
    assert [folder.name for folder in store.runs()] == [run.name]
    (experiment,) = prepared(registry, asked)
    assert status_of(experiment, store) == Outcome(run.name, "failed", row["reason"])


def test_an_error_that_nobody_foresaw_fails_the_stage_with_a_traceback_beside_it(tmp_path, registry):
    @dataclass(frozen=True)
    class Broken:
        name: str = "broken"

        def passes(self, voters):
            return 1, 1

        def __call__(self, scoring):
            raise RuntimeError("no scores today")

    fresh = load_registry([PLUGIN])
    fresh.add("methods", Method(name="broken", score=Broken(), schedule=once()), "test", "test", None)
    outcomes = list(run_all([request("broken", 0.5), request("broken", 0.8)], Store(tmp_path), fresh, **SILENT))
    scores, *runs = outcomes
    assert scores.reason == "RuntimeError: no scores today"
    assert "no scores today" in (tmp_path / "stages" / scores.name / "error.log").read_text()
    assert all(scores.reason in run.reason for run in runs)


def test_a_scorer_that_cannot_say_what_it_costs_is_refused(registry):
    @dataclass(frozen=True)
    class Secretive:
        name: str = "secretive"

        def __call__(self, scoring):
            return {}

    fresh = load_registry([PLUGIN])
    fresh.add("methods", Method(name="m", score=Secretive(), schedule=once()), "test", "test", None)
    with pytest.raises(UsageError, match=r"Scorer 'secretive' cannot say what it costs: give it passes\(voters\)"):
        prepared(fresh, request("m"))


# Workers


def test_a_worker_does_the_same_where_it_arrives_without_plugins_and_data(tmp_path, registry, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    found = prepared(registry, request("toy-finetune"))
    here = Worker(Store(Path("runs")), Engine(), registry, {}, registry.plugins, registry.blocked)
    there = pickle.loads(pickle.dumps(here))
    assert there.registry is None
    assert there.store.folder.is_absolute()
    stage, run = graph(found)
    outcome = there(stage, [], Slot(threads=1, logged=True))
    assert outcome.good
    assert there(run, [outcome], Slot(logged=True)).good
    assert {path.name for path in (tmp_path / "runs" / "stages" / stage.name).iterdir()} >= {WEIGHTS, "worker.log"}
    again = list(run_all([request("toy-finetune")], Store(tmp_path / "runs"), registry, **SILENT))
    assert [outcome.name for outcome in again] == [run.name], "nothing is left to do"


def test_all_that_a_job_prints_goes_to_its_log(tmp_path):
    program = (
        "import os, pathlib, sys; from mtlprune_bench.runs.worker import _logged\n"
        "with _logged(pathlib.Path(sys.argv[1])):\n"
        "    print('from Python'); os.write(2, b'from below Python\\n')\n"
        "print('afterwards')"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "job")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (answer.stdout, answer.stderr) == ("afterwards\n", "")
    log = (tmp_path / "job" / "worker.log").read_text()
    assert sorted(log.splitlines()) == ["from Python", "from below Python"]


# Choosing


def test_only_takes_runs_by_the_beginning_of_their_id(registry):
    found = prepared(registry, *(request(m, s) for m in ("snip", "random") for s in (0.5, 0.8)))
    assert [e.config.method.name for e in chosen(found, ["snip"])] == ["snip", "snip"]
    assert [e.config.sparsity for e in chosen(found, ["*-0.5-"])] == [0.5, 0.5]
    with pytest.raises(UsageError, match="No run fits magnitude; the pattern is the beginning of a run's id"):
        chosen(found, ["magnitude"])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shards_share_all_runs_out_and_no_stage_is_in_two(registry, count):
    methods = ("toy-finetune", "toy-lottery", "snip", "random", "lth")
    found = prepared(registry, *(request(m, s, seed) for m in methods for s in (0.5, 0.8) for seed in (0, 1)))
    shards = [chosen(found, (), f"{number}/{count}") for number in range(1, count + 1)]
    ids = [experiment.config.run_id for shard in shards for experiment in shard]
    assert sorted(ids) == sorted(experiment.config.run_id for experiment in found)
    dense = [{job.name for job in graph(shard) if job.kind == "dense training"} for shard in shards]
    assert len(set().union(*dense)) == sum(map(len, dense)) == 2
    if count == 2:
        costs = [sum(job.cost.backward for job in graph(shard)) for shard in shards]
        assert max(costs) <= 1.2 * min(costs)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_that_is_none_is_refused(registry, shard):
    with pytest.raises(UsageError, match=f"Shard '{shard}' is no part of a whole; write I/N"):
        chosen(prepared(registry, request("snip")), (), shard)


def test_two_cells_that_come_to_one_run_are_refused_in_a_suite(registry):
    default = request("disparse-static", score={"batches": 2}, arbiter="or")
    with pytest.raises(UsageError, match=r"asked for twice, with settings .*'batches': 2.*'or'.*exclude one"):
        prepare_all([static(0.8), default], registry, **SILENT, distinct=True)
    dense = prepare_all([request("dense", 0.5), request("dense", 0.8)], registry, **SILENT, distinct=True)
    assert len(dense) == 1


def test_a_finished_run_of_an_earlier_version_gets_its_request(tmp_path, registry):
    store = Store(tmp_path)
    (outcome,) = run_all([request("snip")], store, registry, **SILENT)
    folder = store.run_folder(outcome.name)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*")}
    written = (folder / "request.json").read_bytes()
    (folder / "request.json").unlink()
    list(run_all([request("snip")], store, registry, **SILENT))
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*")}
    assert (folder / "request.json").read_bytes() == written
    assert before.pop("request.json") != after.pop("request.json")
    assert before == after
