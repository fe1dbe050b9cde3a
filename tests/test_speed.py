"""The speed benchmark: its sides agree, a disagreement and too little memory are told; no time is asserted."""

import dataclasses
import json
import pickle

import pytest
import torch

from benchmarks.speed import growth, measure, summary
from benchmarks.speed.__main__ import arguments, cases, devices, main
from benchmarks.speed.measure import OURS, Asked, Case, Ceilings, Sides
from benchmarks.speed.pruning import exact, masks, several, update, whole
from benchmarks.speed.pruning import scoring as scored
from benchmarks.speed.training import evaluation, training
from benchmarks.speed.workloads import Workload

CPU = torch.device("cpu")
CEILINGS = Ceilings(flops=1e11, half=2e11, moved=1e10)
ONCE = Asked(repeat=1, seconds=0.0)
TINY = Workload("timm:lcnet_035", 2, 32, 2, CPU)


@pytest.fixture(autouse=True)
def narrow_heads(monkeypatch):
    """Give the networks heads of 8 channels, so that each side takes a fraction of a second."""
    build = Workload.model.func

    def narrow(work):
        model = build(work)
        return dataclasses.replace(model, settings=dataclasses.replace(model.settings, width=8, rates=(1, 2)))

    monkeypatch.setattr(Workload, "model", property(narrow))


@pytest.fixture(autouse=True)
def one_thread():
    """Let no thread wait for another where processors are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "prepare",
    [
        lambda work: scored(work, 2, CPU),
        lambda work: masks(work, CPU),
        lambda work: exact(work, 1, CPU),
        lambda work: several(work, 2, CPU),
        lambda work: whole(work, 1, CPU),
        lambda work: update(work, CPU),
    ],
    ids=["scoring", "masks", "exact", "several", "whole", "update"],
)
def test_pruning_agrees(prepare):
    sides = prepare(dataclasses.replace(TINY, tasks=3))
    assert set(sides.run) == {"released", OURS}
    assert measure.disagreement(sides) == ""
    assert sides.flops > 0 or sides.moved > 0


def test_training_agrees_and_a_dense_network_is_not_compared():
    sides = training(TINY, {}, CPU)
    assert set(sides.run) == {"dense", "reparametrised", OURS}
    assert measure.disagreement(sides) == ""
    assert sides.other == ("dense",)


def test_metrics_agree():
    sides = evaluation(3, (48, 64), CPU)
    assert measure.disagreement(sides) == ""
    found = sides.run["released"]()
    assert found.keys() <= sides.run[OURS]().keys()
    assert len(found) == 8


def case(sides, **facts):
    given = {"name": "one", "size": "1", "needs": 1.0, "targets": {"other": 2.0}, **facts}
    return Case(prepare=lambda device: sides, **given)


def test_a_disagreement_is_reported_in_the_place_of_a_ratio():
    good = {"weight": torch.tensor([True, False])}
    bad = {"weight": torch.tensor([False, False])}
    ran = []
    sides = Sides({"other": lambda: ran.append(1) or bad, OURS: lambda: good}, measure.masks_differ())
    result = measure.measure(case(sides), CPU, ONCE, CEILINGS)
    assert result.problem == "other and ours disagree: masks differ in 1 weights"
    assert result.values == {}
    assert len(ran) == 1
    assert result.problem in summary.table([result])


def test_numbers_and_layers_that_differ_are_named():
    differ = measure.numbers_differ({"angle": 1.0}, 0.01)
    assert differ({"angle": 10.0, "error": 1.0}, {"angle": 10.9, "error": 1.005, "more": 1.0}) == ""
    assert differ({"angle": 10.0, "error": 1.0}, {"angle": 10.0, "error": 1.1}) == "error is 1 and 1.1"
    assert differ({"error": 1.0}, {"error": float("nan")}) == "error is 1 and nan"
    assert differ({"one": 1.0}, {"other": 1.0}) == "there is nothing to compare"
    assert measure.masks_differ(9)({"a": torch.ones(1)}, {"b": torch.ones(1)}) == "masks are of other layers"


def test_a_size_beyond_memory_is_refused_with_the_estimate():
    def prepare(device):
        raise AssertionError("nothing may be made of it")

    huge = Case(name="one", size="1", prepare=prepare, needs=1e18, targets={})
    result = measure.measure(huge, CPU, ONCE, CEILINGS)
    assert result.problem.startswith("refused: it needs about 1000000000.0 GB, and ")
    assert result.problem in summary.table([result])


def test_large_networks_say_what_they_need(monkeypatch):
    monkeypatch.undo()
    paper = Workload("deeplab-resnet34", 2, 65, 2, CPU)
    assert paper.weights == 67_581_120
    assert 2e9 < paper.needs() < 8e9
    assert paper.needs() < dataclasses.replace(paper, tasks=5).needs()


def test_sides_take_turns_and_all_is_taken_away():
    order, closed = [], []
    sides = Sides(
        {"other": lambda: order.append("other"), OURS: lambda: order.append(OURS)},
        lambda theirs, ours: "",
        close=lambda: closed.append(1),
    )
    result = measure.measure(case(sides), CPU, Asked(repeat=2, seconds=60), CEILINGS)
    assert order == ["other", OURS] * 3
    assert [len(values) for values in result.values.values()] == [2, 2]
    assert closed == [1]


def fill(megabytes):
    return torch.ones(megabytes * 250_000)


def test_memory_is_that_over_the_start():
    held = fill(300)
    sides = Sides({"other": lambda: fill(200), OURS: lambda: fill(50)}, lambda theirs, ours: "")
    more, less = (measure.peak_here(case(sides, unit="MB"), name, CPU) for name in ("other", OURS))
    assert 190 < more < 260
    assert 45 < less < 110
    assert len(held)


def test_ratios_targets_and_floors_are_in_the_table():
    result = measure.Result(
        "one", "small", "s", {"other": 2.0}, 1.5, "cpu", {"other": [3.0], OURS: [2.0]}, floor=1.0
    )
    (row, limit) = summary.rows([result])
    assert row == ("one", "small", "other", "3.00 s", "2.00 s", "1.50", "2 missed", "50%")
    assert limit[6] == "< 1.50 s missed"
    assert summary.described(result)["ratios"] == {"other": 1.5}


def test_the_readme_has_what_was_measured_between_its_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{summary.OPENING}\nold\n{summary.CLOSING}\nafter\n")
    summary.write_readme(readme, "new")
    assert readme.read_text() == f"before\n{summary.OPENING}\n\nnew\n\n{summary.CLOSING}\nafter\n"
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="has no section between"):
        summary.write_readme(readme, "new")


@pytest.fixture
def in_this_process(monkeypatch):
    """Measure here what cannot be sent to another process."""
    monkeypatch.setattr(measure, "alone", lambda work, *given: work(*given))


def test_growth_is_drawn(tmp_path, in_this_process):
    one = growth.Series("masks", "weights", (1, 2), lambda place: case(Sides({OURS: int}, lambda a, b: "")))
    found = growth.grow(one, CPU, ONCE, CEILINGS)
    summary.draw([(one.title, one.words, one.places, found)], tmp_path / "growth.svg")
    assert "weights" in (tmp_path / "growth.svg").read_text()


def test_the_command_measures_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.speed.__main__.ceilings_of", lambda device: CEILINGS)
    main(["--quick", "--only", "evaluation", "--repeat", "1", "--device", "cpu", "--output", str(tmp_path)])
    content = json.loads((tmp_path / "speed.json").read_text())
    assert [one["case"] for one in content["cases"]] == ["evaluation"]
    assert set(content["cases"][0]["values"]) == {"released", OURS}
    assert [one["ceilings"]["moved"] for one in content["devices"]] == [1e10]
    assert "| evaluation" in (tmp_path / "table.md").read_text()
    assert "| evaluation" in capsys.readouterr().out


def test_what_is_asked_for_wrongly_is_named():
    with pytest.raises(SystemExit, match=r"There is no case nothing\. Known are: scoring, masks"):
        cases(True, ["nothing"])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="There is no GPU"):
            devices("cuda")
        assert devices("") == [CPU]
    assert arguments([]).repeat == 5


def test_cases_reach_the_process_in_which_memory_is_measured():
    for one in [*cases(True, []), *cases(False, [])]:
        again = pickle.loads(pickle.dumps(one))
        assert (again.name, again.size, again.needs) == (one.name, one.size, one.needs)


def test_without_a_gpu_what_needs_one_is_left_out(in_this_process):
    from benchmarks.speed.__main__ import run

    sides = Sides({OURS: int}, lambda theirs, ours: "")
    results = run([case(sides, cuda=True), case(sides, targets={})], CPU, ONCE, CEILINGS)
    assert [one.case for one in results] == ["one"]
