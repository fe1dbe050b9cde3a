"""Pixels: cells, strips and picked places give what plain operations on whole images give, to the bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mtlprune_bench import DISPARSE, STANDARD, Labels, Metric
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.tasks import Batch, Objective
from mtlprune_bench.training import pixels
from mtlprune_bench.training.evaluate import evaluate
from mtlprune_bench.training.metrics import Angles, Confusion, CrossEntropy, Deviation, Ratios

moderate = settings(deadline=None, max_examples=30, derandomize=True)
sides = st.integers(1, 40)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@moderate
@given(sides, sides, sides, sides)
def test_cells_are_those_that_torch_enlarges(h, w, height, width):
    values = drawn(2, 3, h, w)
    cells = pixels.cells_of(values, (height, width))
    assert torch.equal(pixels.spread(values, cells), F.interpolate(values, (height, width), mode="nearest"))
    assert pixels.spread(values, None) is values


@pytest.mark.parametrize("strip", [1, 10**9])
@pytest.mark.parametrize("classes", [1, 3, 40, 300])
def test_the_best_class_is_the_first_of_the_highest(strip, classes, monkeypatch):
    monkeypatch.setattr(pixels, "STRIP", strip)
    scores = drawn(2, classes, 9, 17).round()
    assert torch.equal(pixels.best_class(scores), scores.argmax(1))
    scores[1, classes // 2, 3] = torch.nan
    scores[0, :, 2] = -torch.inf
    assert torch.equal(pixels.best_class(scores), scores.argmax(1))


@pytest.mark.parametrize("strip", [1, 1000, 10**9])
@pytest.mark.parametrize("size", [(7, 9), (13, 37), (24, 32)])
def test_strips_change_no_bit_of_cross_entropies(strip, size, monkeypatch):
    monkeypatch.setattr(pixels, "STRIP", strip)
    scores, classes = drawn(2, 5, *size), drawn(2, *size).abs().long().clamp(max=4)
    plain = -F.log_softmax(scores, 1).gather(1, classes[:, None])[:, 0]
    assert torch.equal(pixels.surprise(scores, classes), plain)


def test_places_are_counted_over_images_rows_and_columns():
    values, mask = drawn(2, 3, 4, 5), drawn(2, 4, 5) > 0
    assert torch.equal(pixels.picked(values, mask.flatten().nonzero()[:, 0]), values.movedim(1, -1)[mask].T)


STATES = {
    "classes": [
        lambda: Confusion(4),
        lambda: Confusion(4, "hit", True, "batch"),
        lambda: CrossEntropy((1, 2, 3, 4)),
    ],
    "values": [Deviation, Ratios],
    "vectors": [Angles],
}


@pytest.mark.parametrize(("kind", "make"), [(kind, make) for kind, own in STATES.items() for make in own])
@pytest.mark.parametrize("size", [(24, 32), (64, 48)])
def test_states_that_are_given_cells_hold_what_they_hold_of_enlarged_predictions(kind, make, size):
    channels = {"classes": 4, "values": 1, "vectors": 3}[kind]
    prediction, mask = drawn(2, channels, 6, 7), drawn(2, *size, seed=1) > -1
    target = drawn(2, channels, *size, seed=2).abs() + 0.1
    target = target.argmax(1) if kind == "classes" else target
    large, small = make(), make()
    large.update(F.interpolate(prediction, size, mode="nearest"), target, mask)
    small.update(prediction, target, mask, pixels.cells_of(prediction, size))
    held = zip(large.state_dict().values(), small.state_dict().values(), strict=True)
    # Cross-entropies are added up by cell, not by pixel.
    near = 1e-6 if isinstance(small, CrossEntropy) else 0
    assert all(torch.allclose(one, other, rtol=near, atol=0) for one, other in held)


def plain_numbers(objective, outputs, batch, metrics):
    """Return the numbers of predictions enlarged and finished as a whole."""
    predictions = objective.predictions(outputs, tuple(batch.images.shape[-2:]))
    found = {}
    for task, own in metrics.items():
        for metric in own:
            state = metric.state(objective.labels[task], objective.protocol)
            state.update(predictions[task], batch.targets[task], batch.masks[task])
            found[task, metric.name] = float(metric.read(state))
    return found


class Stored(torch.nn.Module):
    """A network that has its predictions already."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, images):
        return self.outputs


class Foreign:
    """A state that knows nothing of cells, as one of another package."""

    def __init__(self, labels, protocol):
        self.shapes = []

    def to(self, device):
        return self

    def update(self, prediction, target, mask):
        self.shapes.append(prediction.shape)


@pytest.mark.parametrize("protocol", [STANDARD, DISPARSE], ids=lambda protocol: protocol.name)
def test_numbers_are_those_of_whole_predictions_under_either_protocol(protocol):
    registry = load_registry()
    labels = {"segmentation": Labels("segmentation", classes=5), "normals": Labels("normals")}
    labels["depth"] = Labels("depth", unit="m")
    channels = {"segmentation": 5, "normals": 3, "depth": 1}
    tasks = {name: registry.get("tasks", name) for name in labels}
    objective = Objective(tasks, labels, dict.fromkeys(labels, 1.0), protocol)
    known = [entry.value for entry in registry.of_kind("metrics")]
    metrics = {
        name: tuple(metric for metric in known if metric.task == name and metric.measures(labels[name]))
        for name in labels
    }
    outputs = {name: drawn(2, count, 7, 9, seed=count) for name, count in channels.items()}
    targets = {name: drawn(2, count, 48, 64, seed=9 * count).abs() + 0.1 for name, count in channels.items()}
    targets["segmentation"] = targets["segmentation"].argmax(1)
    batch = Batch(torch.zeros(2, 3, 48, 64), targets, dict.fromkeys(labels, drawn(2, 48, 64) > -1))
    values = evaluate(Stored(outputs), objective, metrics, [batch], torch.device("cpu"))
    found = {(value.task, value.metric): value.value for value in values if value.metric != "loss"}
    expected = plain_numbers(objective, outputs, batch, metrics)
    # Cross-entropies are added up by cell, not by pixel.
    error = ("segmentation", "error")
    assert found.pop(error) == pytest.approx(expected.pop(error), rel=1e-8)
    assert found == expected


@pytest.mark.parametrize("protocol", [STANDARD, DISPARSE], ids=lambda protocol: protocol.name)
def test_a_state_that_takes_no_cells_gets_predictions_at_full_size(protocol):
    registry = load_registry()
    seen = []
    metric = Metric(
        name="shape",
        task="depth",
        description="",
        state=Foreign,
        read=lambda state: torch.tensor(float(seen.extend(state.shapes) or len(state.shapes))),
        higher_is_better=True,
    )
    labels = {"depth": Labels("depth", unit="m")}
    objective = Objective({"depth": registry.get("tasks", "depth")}, labels, {"depth": 1.0}, protocol)
    batch = Batch(
        torch.zeros(1, 3, 20, 30), {"depth": torch.ones(1, 1, 20, 30)}, {"depth": torch.ones(1, 20, 30) > 0}
    )
    evaluate(Stored({"depth": drawn(1, 1, 5, 6)}), objective, {"depth": (metric,)}, [batch], torch.device("cpu"))
    assert seen == [(1, 1, 20, 30)]
