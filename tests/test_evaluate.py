"""Evaluation: what streams in batches is what one looks at in one piece, and the model is left as it was."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.suite import prepare_all
from mtlprune_bench.training.batches import evaluation_batches
from mtlprune_bench.training.evaluate import evaluate, total_loss

PLUGIN = str(Path(__file__).parent / "toy_plugin.py")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def registry():
    return load_registry([PLUGIN])


@pytest.fixture
def toy(registry):
    """Return the dense experiment on the toy patches, and its untrained network."""
    asked = Request(method="dense", dataset="toy", sparsity=0.0, seed=0)
    (experiment,) = prepare_all([asked], registry, lambda text: None)
    return experiment, experiment.build_model(CPU)


def patches(experiment, size=5, count=5):
    """Return the first `count` samples of the test set in batches of `size`."""
    splits = experiment.opened.splits
    samples = [splits.test[index] for index in range(count)]
    return evaluation_batches(samples, splits, experiment.objective, size)


def measure(experiment, model, batches):
    """Return the measured numbers by task and metric."""
    values = evaluate(model, experiment.objective, experiment.metrics, batches, CPU)
    return {(value.task, value.metric): value.value for value in values}


@pytest.fixture
def whole(toy):
    """Return the toy's whole test set as one batch and the network's outputs on it, in eval mode."""
    experiment, model = toy
    (batch,) = patches(experiment)
    model.eval()
    with torch.no_grad():
        outputs = model(batch.images)
    model.train()
    return batch, outputs


def test_losses_are_those_of_the_whole_set_at_the_predictions_resolution(toy, whole):
    experiment, model = toy
    batch, outputs = whole
    assert outputs["normals"].shape[-2:] == (10, 12)
    # The corners of the 10 x 12 grid lie on those of the 20 x 24 image, as the protocol standard has it.
    rows = [math.floor(row * 19 / 9 + 0.5) for row in range(10)]
    columns = [math.floor(column * 23 / 11 + 0.5) for column in range(12)]
    classes = batch.targets["segmentation"][:, rows][:, :, columns]
    normals = batch.targets["normals"][:, :, rows][:, :, :, columns]
    segmentation = F.cross_entropy(outputs["segmentation"], classes).item()
    angles = (1 - F.cosine_similarity(outputs["normals"], normals)).mean().item()
    found = measure(experiment, model, patches(experiment))
    assert found["segmentation", "loss"] == pytest.approx(segmentation)
    assert found["normals", "loss"] == pytest.approx(angles, abs=1e-6)
    assert found["", "loss"] == pytest.approx(1.0 * segmentation + 5.0 * angles)
    assert total_loss(model, experiment.objective, patches(experiment), CPU) == found["", "loss"]


def test_metrics_are_those_of_the_whole_set_at_full_resolution(toy, whole):
    experiment, model = toy
    batch, outputs = whole
    large = {
        task: F.interpolate(output, (20, 24), mode="bilinear", align_corners=True)
        for task, output in outputs.items()
    }
    classes = large["segmentation"].argmax(1)
    truth = batch.targets["segmentation"]
    ious = []
    for number in range(5):
        here, there = classes == number, truth == number
        if (here | there).any():
            ious.append(((here & there).sum() / (here | there).sum()).item())
    cosine = F.cosine_similarity(large["normals"], batch.targets["normals"]).clamp(-1, 1)
    angles = torch.rad2deg(torch.acos(cosine))
    found = measure(experiment, model, patches(experiment, 2))
    assert found["segmentation", "pixel_accuracy"] == pytest.approx((classes == truth).float().mean().item())
    assert found["segmentation", "mean_iou"] == pytest.approx(sum(ious) / len(ious))
    assert found["normals", "mean_angle"] == pytest.approx(angles.mean().item(), rel=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_numbers_do_not_depend_on_the_size_of_a_batch(toy, size):
    experiment, model = toy
    # 5 images: a last batch of 1 or 2 counts as much less as it has fewer images.
    found = measure(experiment, model, patches(experiment, size))
    whole = measure(experiment, model, patches(experiment, 5))
    assert found.keys() == whole.keys()
    assert {key: pytest.approx(value, rel=1e-5, nan_ok=True) for key, value in whole.items()} == found


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_measured_in_eval_mode_and_left_as_it_was(toy, training):
    experiment, model = toy
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = measure(experiment, model, patches(experiment))
    assert measure(experiment, model, patches(experiment)) == first, "no dropout"
    assert model.training is training
    assert all(module.training is training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_each_number_has_the_unit_and_the_better_side_of_its_metric(toy):
    experiment, model = toy
    values = evaluate(model, experiment.objective, experiment.metrics, patches(experiment), CPU)
    sides = {(value.task, value.metric): (value.unit, value.higher_is_better) for value in values}
    assert sides["", "loss"] == sides["normals", "loss"] == ("", False)
    assert sides["segmentation", "mean_iou"] == ("fraction", True)
    assert sides["normals", "mean_angle"] == ("degree", False)
    assert len(sides) == len(values)


def test_without_metrics_only_losses_are_measured(toy):
    experiment, model = toy
    values = evaluate(model, experiment.objective, {}, patches(experiment), CPU)
    assert [(value.task, value.metric) for value in values] == [
        ("", "loss"),
        ("segmentation", "loss"),
        ("normals", "loss"),
    ]


def test_an_empty_set_has_metrics_that_are_not_numbers_and_leaves_the_model_as_it_was(toy):
    experiment, model = toy
    found = measure(experiment, model, patches(experiment, count=0))
    assert all(math.isnan(value) for value in found.values())
    assert model.training
