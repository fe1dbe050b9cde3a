"""The stand-in can be learned: a dense network beats what any constant prediction reaches, by far."""

import pytest

from benchmarks.trivial import scores
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.suite import run_all
from mtlprune_bench.store import Store, read_rows


@pytest.mark.slow
def test_dense_reaches_five_times_the_majority_class_and_seven_tenths_of_the_best_constant_normal(tmp_path):
    request = Request(method="dense", dataset="nyuv2", sparsity=0.0, seed=0)
    notices = []
    stage, run = run_all([request], Store(tmp_path), load_registry(), notify=notices.append)
    assert stage.good
    assert run.good
    assert notices[0].startswith("STAND-IN DATA")
    rows = read_rows(tmp_path / run.name)
    reached = {(row["task"], row["metric"]): row["value"] for row in rows if row["split"] == "test"}
    assert all(row["stand_in"] for row in rows)
    floor = {(task, metric): value for task, metric, value in scores("nyuv2")}
    assert reached["segmentation", "mean_iou"] >= 5 * floor["segmentation", "mean_iou"]
    assert reached["normals", "mean_angle"] <= 0.7 * floor["normals", "mean_angle"]
