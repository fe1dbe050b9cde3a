"""TensorBoard: its event files say what happened, once, and change nothing."""

from pathlib import Path

import pytest

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

from mtlprune_bench.commands import run_cli  # noqa: E402
from mtlprune_bench.host.registry import load_registry  # noqa: E402
from mtlprune_bench.runs.request import Request  # noqa: E402
from mtlprune_bench.runs.suite import prepare_all, run_all  # noqa: E402
from mtlprune_bench.store import Store, read_history, read_rows  # noqa: E402
from mtlprune_bench.training.checkpoint import load_masks  # noqa: E402

PLUGIN = str(Path(__file__).parents[1] / "toy_plugin.py")
NAME = "observers.tensorboard"


def silent(text):
    pass


@pytest.fixture(scope="module", autouse=True)
def _listening():
    """Let the observer listen, which is blocked in other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MTLBENCH_BLOCKED")
        yield


@pytest.fixture(scope="module")
def registry():
    return load_registry([PLUGIN])


def run(store, registry, name, **settings):
    """Execute a run at a sparsity of 0.8, and return its folder."""
    request = Request(method=name, dataset="toy", sparsity=0.8, seed=0, settings=settings)
    (outcome,) = [
        each for each in run_all([request], Store(store), registry, silent) if each.name.startswith(name)
    ]
    assert outcome.good, outcome
    (experiment,) = prepare_all([request], registry, silent)
    return store / experiment.config.run_id


def events(folder):
    """Return the numbers of a folder's event files, as steps and values by tag, and the names of its pictures."""
    read = event_accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    tags = read.Tags()
    return {tag: [(each.step, each.value) for each in read.Scalars(tag)] for tag in tags["scalars"]}, tags[
        "images"
    ]


@pytest.fixture(scope="module")
def rigl(tmp_path_factory, registry):
    return run(tmp_path_factory.mktemp("rigl"), registry, "rigl")


def test_losses_are_those_of_the_history_and_the_total_is_their_weighted_sum(rigl):
    numbers, _ = events(rigl)
    history = list(read_history(rigl / "history.jsonl"))
    for task in ("segmentation", "normals"):
        assert [step for step, _ in numbers[f"loss/{task}"]] == list(range(30))
        assert [value for _, value in numbers[f"loss/{task}"]] == pytest.approx(
            [entry["losses"][task] for entry in history]
        )
    total = [entry["losses"]["segmentation"] + 5 * entry["losses"]["normals"] for entry in history]
    assert [value for _, value in numbers["total-loss"]] == pytest.approx(total)


def test_the_learning_rate_is_that_of_the_recipe(rigl):
    numbers, _ = events(rigl)
    # 0.01, halved after 20 steps; written where it changes, and at the end.
    assert numbers["learning-rate"] == [
        (0, pytest.approx(0.01)),
        (20, pytest.approx(0.005)),
        (29, pytest.approx(0.005)),
    ]


def test_the_sparsity_of_layers_and_components_is_that_of_the_masks(rigl):
    numbers, _ = events(rigl)
    masks = load_masks(rigl / "masks.safetensors")
    for name, mask in masks.items():
        assert numbers[f"layer-sparsity/{name}"][-1] == (29, pytest.approx(1 - mask.double().mean().item()))
    rows = {row["component"]: row["value"] for row in read_rows(rigl) if row["metric"] == "sparsity"}
    assert set(rows) == {"whole", "shared", "segmentation", "normals"}
    for component, value in rows.items():
        assert numbers[f"sparsity/{component}"][-1] == (29, pytest.approx(value))
    kept = list(read_history(rigl / "sparsity.jsonl"))
    assert [entry["step"] for entry in kept] == list(range(30))
    assert kept[-1]["sparsity"] == pytest.approx(rows)


def test_churn_is_the_share_of_weights_that_changed_at_an_update(rigl, registry, tmp_path):
    seen = []

    class Spy:
        from mtlprune_bench import hookimpl

        @hookimpl
        def masks_updated(self, run, step, before, after):
            flipped = sum(int((before[name] ^ after[name]).sum()) for name in after)
            seen.append((step, pytest.approx(flipped / sum(mask.numel() for mask in after.values()))))

    watched = load_registry([PLUGIN], [NAME])
    watched.manager.register(Spy())
    run(tmp_path, watched, "rigl")
    assert events(rigl)[0]["mask-churn"] == seen
    assert 0 < seen[0][1].expected < 0.2


def test_a_network_that_is_pruned_late_loses_what_its_masks_remove(registry, tmp_path):
    numbers, _ = events(run(tmp_path, registry, "toy-late"))
    assert numbers["mask-churn"] == [(10, pytest.approx(0.8, abs=1e-3))]
    assert numbers["sparsity/whole"][0] == (10, pytest.approx(0.8, abs=1e-3))


def test_learned_methods_show_thresholds_and_task_weights(registry, tmp_path):
    folder = run(tmp_path, registry, "adapmtl", method={"s_init": -3.0})
    numbers, _ = events(folder)
    thresholds = {tag: values for tag, values in numbers.items() if tag.startswith("threshold/")}
    assert set(thresholds) == {"threshold/shared", "threshold/segmentation", "threshold/normals"}
    assert all(0 < value < 1 for values in thresholds.values() for _, value in values)
    weights = [numbers[f"task-weight/{task}"][-1][1] for task in ("segmentation", "normals")]
    assert sum(weights) == pytest.approx(2)
    whole = [row for row in read_rows(folder) if row["component"] == "whole"]
    assert numbers["sparsity/whole"][-1] == (29, pytest.approx(whole[0]["value"]))
    assert whole[0]["value"] > 0.1


def test_what_was_measured_and_pictures_of_predictions_end_a_run(rigl):
    numbers, pictures = events(rigl)
    (miou,) = [row["value"] for row in read_rows(rigl) if row["metric"] == "mean_iou"]
    assert numbers["final/test-segmentation-mean_iou"] == [(30, pytest.approx(miou))]
    assert pictures == ["predictions/test-0", "predictions/test-1", "predictions/test-2"]
    read = event_accumulator.EventAccumulator(str(rigl), size_guidance={"images": 0}).Reload()
    (picture,) = read.Images("predictions/test-0")
    assert (picture.height, picture.width) == (2 * 20, 3 * 24), "image and two tasks, truth above prediction"


def test_dense_trainings_have_their_own_files(registry, tmp_path):
    folder = run(tmp_path, registry, "toy-finetune")
    (stage,) = (tmp_path / "stages").glob("dense-*")
    assert len(events(stage)[0]["loss/normals"]) == 30
    assert "sparsity/whole" not in events(stage)[0]
    assert len(events(folder)[0]["loss/normals"]) == 8


def test_results_are_the_same_bytes_with_and_without(registry, tmp_path):
    alone = load_registry([PLUGIN], [NAME])
    for method in ("rigl", "adapmtl"):
        one, two = run(tmp_path / "with", registry, method), run(tmp_path / "without", alone, method)
        assert list(one.glob("events.*"))
        assert not list(two.glob("events.*"))
        for name in ("masks.safetensors", "weights.safetensors", "history.jsonl", "sparsity.jsonl"):
            assert (one / name).read_bytes() == (two / name).read_bytes()
        rows = [
            [row for row in read_rows(folder) if row["metric"] not in ("seconds", "peak_memory")]
            for folder in (one, two)
        ]
        assert rows[0] == rows[1]


def test_a_resumed_run_goes_on_without_doubled_steps(registry, tmp_path):
    class Stopped(BaseException):
        pass

    class Stop:
        from mtlprune_bench import hookimpl

        left = 13

        @hookimpl(trylast=True)
        def step_finished(self, run, step, losses):
            self.left -= 1
            if not self.left:
                raise Stopped

    stopping = load_registry([PLUGIN])
    stopping.manager.register(Stop())
    settings = {"engine": {"checkpoint_seconds": 0}}
    with pytest.raises(Stopped):
        run(tmp_path, stopping, "rigl", **settings)
    folder = run(tmp_path, registry, "rigl", **settings)
    numbers, _ = events(folder)
    assert [step for step, _ in numbers["loss/normals"]] == list(range(30))
    assert [step for step, _ in numbers["total-loss"]] == list(range(30))
    assert [value for _, value in numbers["loss/normals"]] == pytest.approx(
        [entry["losses"]["normals"] for entry in read_history(folder / "history.jsonl")]
    )


def test_pictures_that_cannot_be_made_do_not_fail_a_run(registry, tmp_path, monkeypatch):
    def broken(experiment, network):
        raise ValueError("no colour")

    monkeypatch.setattr("mtlprune_bench.runs.run.sheets", broken)
    with pytest.warns(UserWarning, match="No pictures: ValueError: no colour. The run goes on"):
        folder = run(tmp_path, registry, "snip")
    numbers, pictures = events(folder)
    assert pictures == []
    assert "final/test-loss" in numbers


def test_an_option_turns_it_off(tmp_path):
    command = ["run", "--plugin", PLUGIN, "--dataset", "toy", "--method", "snip", "--store", str(tmp_path)]
    assert run_cli([*command, "--no-tensorboard"]) == 0
    (folder,) = tmp_path.glob("snip-*")
    assert (folder / "rows.parquet").exists()
    assert not list(tmp_path.rglob("events.*"))


def test_where_tensorboard_is_not_installed_nobody_listens(monkeypatch):
    import importlib.util
    import runpy

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else found(name, *rest)
    )
    module = runpy.run_path(str(Path(__file__).parents[2] / "plugins" / "observers" / "tensorboard.py"))
    assert not [name for name, value in module.items() if hasattr(value, "mtlbench_impl")]
