"""Figures: what is drawn is what was measured, and a method looks the same wherever it occurs."""

import json
import math
import random

import matplotlib
import numpy as np
import pytest
import torch
from tables import ERROR, frame

from mtlprune_bench.adapters import Sample
from mtlprune_bench.errors import UsageError
from mtlprune_bench.figures import charts, style, traces
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.results.comparisons import comparisons
from mtlprune_bench.runs import predictions
from mtlprune_bench.store import Store
from mtlprune_bench.tasks import Labels

DENSE = {"method": "dense", "sparsity": 0.0}
LOSS = {"task": "", "metric": "loss", "unit": "", "higher_is_better": False}
WHOLE = {"task": "", "split": "", "component": "whole", "metric": "sparsity", "higher_is_better": None}


@pytest.fixture(autouse=True)
def _style():
    with matplotlib.rc_context(style.STYLE):
        yield


def results(*changes):
    (comparison,) = comparisons(frame(*changes))
    return comparison


def losses():
    """Return SNIP at two sparsities, over two seeds, and a dense network of one."""
    numbers = {(0.5, 0): 2.0, (0.5, 1): 4.0, (0.9, 0): 6.0, (0.9, 1): 6.0}
    pruned = [{"sparsity": s, "seed": seed, "value": value} for (s, seed), value in numbers.items()]
    return results(*(LOSS | each for each in (DENSE | {"value": 1.0}, *pruned)))


def drawn(axis):
    """Return the lines of a panel by what the legend calls them."""
    return {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}


def cost(name, value, **more):
    return {
        "task": "",
        "split": "",
        "metric": name,
        "unit": "step",
        "higher_is_better": False,
        "value": value,
        **more,
    }


def test_built_in_methods_differ_as_lines_in_grey_and_as_markers_in_colour():
    names = [entry.name for entry in load_registry().of_kind("methods")]
    looks = [style.look_of(name) for name in names]
    assert len(looks) > 20
    assert len({(look.marker, look.hollow, str(look.dash)) for look in looks}) == len(looks)
    assert len({look.seen for look in looks}) == len(looks)


def test_a_method_looks_the_same_whatever_else_is_drawn():
    few = results({"method": "snip"}, {"method": "lth"})
    many = results(
        *({"method": name, "settings": text} for name in ("snip", "lth", "gmp") for text in ("", "a=1"))
    )
    ours, theirs = style.looks(few.lines), style.looks(many.lines)
    assert {name: theirs[name] for name in ours} == ours
    assert theirs["snip (a=1)"]["color"] == theirs["snip"]["color"]


def test_settings_of_a_method_are_told_apart_even_where_their_looks_would_be_one():
    lines = results(*({"settings": f"a={number}"} for number in range(20)), {}).lines
    drawings = style.looks(lines).values()
    assert len({(each["marker"], each["markerfacecolor"]) for each in drawings}) == 21


def test_loss_against_sparsity_has_the_means_a_band_and_the_dense_line():
    figure = charts.sparsity_figure(losses())
    (axis,) = figure.axes
    lines = drawn(axis)
    assert lines["snip"].get_xydata().tolist() == [[50.0, 3.0], [90.0, 6.0]]
    assert set(lines["dense"].get_ydata()) == {1.0}
    assert lines["dense"].get_linestyle() == "--"
    # 2 and 4: a standard deviation of sqrt(2) around 3; of two equal ones none.
    (band,) = axis.collections
    edges = {tuple(np.round(point, 6)) for point in band.get_paths()[0].vertices}
    root = round(math.sqrt(2), 6)
    assert {(50.0, round(3 - root, 6)), (50.0, round(3 + root, 6)), (90.0, 6.0)} <= edges
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("sparsity (%)", "test loss ↓")


def test_a_sparsity_that_was_not_reached_is_drawn_where_it_is():
    figure = charts.sparsity_figure(results(LOSS, WHOLE | {"value": 0.3}))
    assert drawn(figure.axes[0])["snip"].get_xdata() == pytest.approx([30.0])


def test_metrics_have_a_panel_each_with_their_units_and_fractions_in_percent():
    both = results({"value": 0.25}, ERROR | {"value": 12.0}, DENSE, DENSE | ERROR)
    figure = charts.sparsity_figure(both, ["miou", "mean_angle"])
    assert [axis.get_ylabel() for axis in figure.axes] == ["seg miou (%) ↑", "normals mean angle (degree) ↓"]
    assert [drawn(axis)["snip"].get_ydata()[0] for axis in figure.axes] == [25.0, 12.0]
    with pytest.raises(UsageError, match=r"Unknown column 'mio'\. Did you mean 'miou'"):
        charts.sparsity_figure(both, ["mio"])


def beaten(point, others):
    """Return whether one of the other points costs no more and is worth no less, and is not the same."""
    return any(cost <= point[0] and value >= point[1] and (cost, value) != point for cost, value in others)


@pytest.mark.parametrize("seed", range(20))
def test_the_pareto_front_is_what_no_point_beats(seed):
    draw = random.Random(seed)
    points = [(draw.randrange(6), draw.randrange(6)) for _ in range(12)]
    front = charts.front([*points, (math.nan, 9.0), (0.0, math.nan)])
    assert sorted(front) == [number for number, point in enumerate(points) if not beaten(point, points)]
    assert [points[number][0] for number in front] == sorted(points[number][0] for number in front)


def test_accuracy_is_drawn_against_cost_with_the_front_of_those_that_reached_their_sparsity():
    rows = [LOSS | DENSE]
    for name, steps, value, reached in [("snip", 100, 3.0, 0.5), ("gmp", 200, 2.0, 0.5), ("str", 50, 1.0, 0.1)]:
        own = {"method": name}
        rows += [LOSS | own | {"value": value}, own | WHOLE | {"value": reached}, own | cost("steps", steps)]
    axis = charts.cost_figure(results(*rows), "test.loss", "steps").axes[0]
    lines = drawn(axis)
    assert lines["snip"].get_xydata().tolist() == [[100.0, 3.0]]
    assert lines["str"].get_xydata().tolist() == [[50.0, 1.0]]
    assert lines["Pareto front"].get_xydata().tolist() == [[100.0, 3.0], [200.0, 2.0]]
    assert (axis.get_xlabel(), axis.get_title()) == ("optimizer steps", "asked for 50 %")


def test_passes_are_forward_and_backward_together():
    line = results(cost("forward", 7), cost("backward", 5)).lines[0]
    assert charts.cost_of(line, "passes") == 12
    assert charts.cost_of(line, "backward") == 5
    assert math.isnan(charts.cost_of(line, "seconds"))


def test_components_are_rows_of_dots_at_their_sparsity():
    parts = [WHOLE | {"component": name, "value": value} for name, value in {"shared": 0.6, "seg": 0.2}.items()]
    axis = charts.components_figure(results(*parts, *(DENSE | part | {"value": 0} for part in parts))).axes[0]
    lines = drawn(axis)
    assert lines["shared"].get_xydata().tolist() == [[60.0, 0.0]]
    assert lines["seg"].get_xydata().tolist() == [[20.0, 0.0]]
    assert set(lines["asked for"].get_xdata()) == {50.0}
    assert [text.get_text() for text in axis.get_yticklabels()] == ["snip"]


def test_only_dense_networks_have_no_components_to_draw():
    with pytest.raises(UsageError, match="All results on toy with 30 steps are of dense networks"):
        charts.components_figure(results(DENSE))


def test_a_stand_in_is_said_loudly():
    figure = charts.sparsity_figure(results(LOSS | {"stand_in": True}))
    assert "STAND-IN, not the real data" in figure.get_suptitle()
    assert figure._suptitle.get_color() == style.LOUD
    assert charts.sparsity_figure(results(LOSS))._suptitle.get_color() == style.PALE


@pytest.mark.parametrize(("ending", "sign"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_files_are_what_their_names_say_and_the_same_bytes_every_time(tmp_path, ending, sign):
    style.write([charts.sparsity_figure(losses())], tmp_path / f"a.{ending}")
    style.write([charts.sparsity_figure(losses())], tmp_path / f"b.{ending}")
    one, two = ((tmp_path / f"{name}.{ending}").read_bytes() for name in "ab")
    assert one.startswith(sign)
    assert one == two


def test_several_figures_are_numbered_and_another_ending_is_refused(tmp_path):
    two = [charts.sparsity_figure(losses()) for _ in range(2)]
    assert style.write(two, tmp_path / "x.svg") == [tmp_path / "x-1.svg", tmp_path / "x-2.svg"]
    assert (tmp_path / "x-2.svg").exists()
    with pytest.raises(UsageError, match=r"x\.gif does not end in \.pdf, \.svg, \.png"):
        style.write(two, tmp_path / "x.gif")


def history(folder, file, key, values):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": step, key: entry}) for step, entry in enumerate(values)]
    (folder / file).write_text("\n".join(lines) + "\n")


def test_a_run_is_all_its_trainings_one_after_the_other(tmp_path):
    store, folder = Store(tmp_path), tmp_path / "run"
    history(tmp_path / "stages" / "dense-a", "history.jsonl", "losses", [{"seg": 8.0}, {"seg": 6.0}])
    history(folder / "round-10", "history.jsonl", "losses", [{"seg": 4.0}])
    history(folder / "round-9", "history.jsonl", "losses", [{"seg": 5.0}])
    history(folder, "history.jsonl", "losses", [{"seg": 3.0}])
    history(folder, "sparsity.jsonl", "sparsity", [{"whole": 0.5}])
    (folder / "plan.json").write_text('{"stages": ["dense-a", "dense-a-step-1", "scores-b"]}')
    (folder / "config.json").write_text('{"loss_weights": {"seg": 2.0}}')
    trace = traces.losses_of(folder, store)
    assert trace.steps.tolist() == [0, 1, 2, 3, 4]
    assert trace.values["seg"].tolist() == [8, 6, 5, 4, 3]
    assert trace.values[traces.TOTAL].tolist() == [16, 12, 10, 8, 6]
    sparsity = traces.sparsities_of(folder, store)
    assert (sparsity.steps.tolist(), sparsity.values["whole"].tolist()) == ([4], [50.0])


def test_running_means_take_the_last_values_only():
    values = np.random.default_rng(0).random(50)
    slow = [values[max(0, end - 7) : end].mean() for end in range(1, 51)]
    assert traces.smoothed(values, 7) == pytest.approx(slow)


def test_curves_are_means_over_seeds(tmp_path):
    for seed, run in enumerate(("r0", "r1")):
        history(tmp_path / run, "history.jsonl", "losses", [{"seg": 2.0 + 2 * seed}, {"seg": 1.0}])
    both = results({"run": "r0"}, {"run": "r1", "seed": 1})
    axis = traces.curves_figure(both, Store(tmp_path)).axes[0]
    assert drawn(axis)["snip at 50 %"].get_xydata().tolist() == [[0.0, 3.0], [1.0, 1.0]]
    with pytest.raises(UsageError, match="kept what it was like while it trained"):
        traces.growth_figure(both, Store(tmp_path))


def depth_sample():
    depth = torch.tensor([[[1.0, 2.0], [3.0, 5.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    return Sample.of(torch.zeros(3, 2, 2, dtype=torch.uint8), {"depth": depth}, {"depth": mask})


def test_truth_and_predictions_have_the_same_colours_for_the_same_values():
    from mtlprune_bench.tasks import Task

    task = Task(name="depth", description="", loss=None, channels=1)
    guess = np.array([[[3.0, 1.0], [99.0, 2.0]]], dtype=np.float32)
    truth, shown = predictions.shown(task, Labels("depth", unit="m"), depth_sample(), [guess])
    # Grey from 1 to 3, the range of what is known; 99 is drawn as 3, a pixel without a label in a grey of its own.
    assert truth[..., 0].tolist() == [[0, 128], [255, predictions.GREY]]
    assert shown[..., 0].tolist() == [[255, 0], [255, 128]]


def test_the_class_with_the_highest_logit_is_shown():
    from mtlprune_bench.tasks import Task

    task = Task(
        name="seg", description="", loss=None, picture=lambda t, m, labels: np.stack([t] * 3, -1).astype("uint8")
    )
    truth = torch.tensor([[0, 2]])
    sample = Sample.of(torch.zeros(3, 1, 2, dtype=torch.uint8), {"seg": truth}, {"seg": truth >= 0})
    logits = np.array([[[0.0, 5.0]], [[1.0, 0.0]], [[0.5, 4.0]]])
    _, shown = predictions.shown(task, Labels("seg", classes=3), sample, [logits])
    assert shown[..., 0].tolist() == [[1, 0]]
