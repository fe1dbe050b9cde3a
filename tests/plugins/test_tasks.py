"""The tasks: losses against torch's, what mirroring and enlarging do, and metrics under both protocols."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import metrics as reference
from torch.nn import functional as F

from mtlprune_bench import DISPARSE, STANDARD, Labels, PluginError, metrics
from mtlprune_bench.plugins.tasks import depth, keypoints_edges, normals, segmentation

PLUGINS = (segmentation, normals, depth, keypoints_edges)
VOID = 255
moderate = settings(deadline=None, max_examples=20, derandomize=True)
seeds = st.integers(0, 2**32)


def registered(hook):
    """Return what all plugins register by `hook`."""
    found = []
    for plugin in PLUGINS:
        getattr(plugin, hook)(found.append)
    return found


TASKS = {task.name: task for task in registered("register_tasks")}
METRICS = {(metric.task, metric.name): metric for metric in registered("register_metrics")}
LABELS = {
    "segmentation": Labels("segmentation", classes=5, class_weights=(1.0, 2.0, 0.5, 4.0, 3.0), negative_void=True),
    "normals": Labels("normals"),
    "depth": Labels("depth", unit="m"),
    "keypoints": Labels("keypoints"),
    "edges": Labels("edges"),
}


def batch_of(task, seed, share=0.7, size=(2, 3, 4)):
    """Return a random prediction, target and mask; invalid targets are 255, or nan."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(size, generator=generator) < share
    channels = TASKS[task].channels or LABELS[task].classes
    prediction = torch.randn(size[0], channels, *size[1:], generator=generator)
    if task == "segmentation":
        target = torch.randint(LABELS[task].classes, size, generator=generator)
        return prediction, target.masked_fill(~mask, VOID), mask
    target = torch.randn(prediction.shape, generator=generator)
    if task == "normals":
        target = F.normalize(target, dim=1)
    if task == "depth":
        target = target.abs() + 0.1
    return prediction, target.masked_fill(~mask[:, None], torch.nan), mask


def test_names_directions_units_and_ranges():
    assert {name: task.channels for name, task in TASKS.items()} == {
        "segmentation": None,
        "normals": 3,
        "depth": 1,
        "keypoints": 1,
        "edges": 1,
    }
    up, down, endless = True, False, math.inf
    found = {key: (m.higher_is_better, m.unit, m.low, m.high) for key, m in METRICS.items()}
    assert found == {
        ("segmentation", "mean_iou"): (up, "fraction", 0, 1),
        ("segmentation", "pixel_accuracy"): (up, "fraction", 0, 1),
        ("segmentation", "error"): (down, "nat", 0, endless),
        ("normals", "mean_angle"): (down, "degree", 0, 180),
        ("normals", "median_angle"): (down, "degree", 0, 180),
        ("normals", "within_11.25"): (up, "fraction", 0, 1),
        ("normals", "within_22.5"): (up, "fraction", 0, 1),
        ("normals", "within_30"): (up, "fraction", 0, 1),
        ("depth", "absolute_error"): (down, "", 0, endless),
        ("depth", "relative_error"): (down, "fraction", 0, endless),
        ("depth", "delta_1"): (up, "fraction", 0, 1),
        ("depth", "delta_2"): (up, "fraction", 0, 1),
        ("depth", "delta_3"): (up, "fraction", 0, 1),
        ("keypoints", "error"): (down, "", 0, 2),
        ("edges", "error"): (down, "", 0, 2),
    }


def test_metrics_of_a_task_share_a_state():
    assert METRICS["segmentation", "mean_iou"].state is METRICS["segmentation", "pixel_accuracy"].state
    for task in ("normals", "depth"):
        assert len({metric.state for metric in METRICS.values() if metric.task == task}) == 1


def expected(task, name, batches, protocol):
    """Return what the reference says of a metric under a protocol."""
    if task == "segmentation":
        weights = LABELS[task].class_weights
        return {
            "mean_iou": lambda: reference.mean_iou(batches, protocol.iou_over),
            "pixel_accuracy": lambda: reference.pixel_accuracy(batches, protocol.count_void, protocol.average),
            "error": lambda: reference.cross_entropy(batches, weights, protocol.average),
        }[name]()
    if task == "normals":
        angles = np.array(reference.angles(batches))
        if name.startswith("within_"):
            return np.mean(angles <= float(name.removeprefix("within_")))
        return {"mean_angle": np.mean, "median_angle": np.median}[name](angles)
    if name.startswith("delta_"):
        return reference.fraction_delta(batches, int(name[-1]), protocol.negative_depth_hits)
    if name == "relative_error":
        return reference.relative_error(batches, protocol.average)
    return reference.absolute_error(batches, protocol.average)


@pytest.mark.parametrize("protocol", [STANDARD, DISPARSE], ids=lambda protocol: protocol.name)
@pytest.mark.parametrize("key", METRICS, ids="/".join)
@moderate
@given(seeds)
def test_metrics_follow_the_protocol(protocol, key, seed):
    task, name = key
    metric = METRICS[key]
    state = metric.state(LABELS[task], protocol)
    batches = []
    for index, (share, images) in enumerate([(0.9, 1), (0.4, 2), (0.0, 2), (0.2, 3)]):
        prediction, target, mask = batch_of(task, seed + index, share, (images, 3, 4))
        state.update(TASKS[task].finish(prediction), target, mask)
        batches.append((prediction.numpy(), target.numpy(), mask.numpy()))
    value = float(metric.read(state))
    tolerance = 0.011 if name == "median_angle" else 1e-5
    assert value == pytest.approx(expected(task, name, batches, protocol), rel=1e-5, abs=tolerance, nan_ok=True)


def test_void_counts_only_where_files_mark_it_by_a_negative_number():
    prediction, target, mask = batch_of("segmentation", 0, share=0.5)
    readings = {}
    for negative_void in (False, True):
        labels = Labels("segmentation", classes=5, negative_void=negative_void)
        state = segmentation.confusion(labels, DISPARSE)
        state.update(prediction, target, mask)
        readings[negative_void] = float(metrics.mean_value(state))
    assert readings[True] == pytest.approx(readings[False] * float(mask.float().mean()))


class TestLosses:
    @moderate
    @given(seeds, st.booleans())
    def test_segmentation(self, seed, weighted):
        prediction, target, mask = batch_of("segmentation", seed)
        weights = LABELS["segmentation"].class_weights if weighted else None
        labels = Labels("segmentation", classes=5, class_weights=weights)
        oracle = F.cross_entropy(
            prediction, target, None if weights is None else torch.tensor(weights), ignore_index=VOID
        )
        torch.testing.assert_close(TASKS["segmentation"].loss(prediction, target, mask, labels), oracle)

    @moderate
    @given(seeds)
    def test_normals(self, seed):
        prediction, target, mask = batch_of("normals", seed)
        guess, truth = prediction.movedim(1, -1)[mask], target.movedim(1, -1)[mask]
        oracle = F.cosine_embedding_loss(guess, truth, torch.ones(len(guess)))
        loss = TASKS["normals"].loss(prediction, target, mask, LABELS["normals"])
        torch.testing.assert_close(loss, oracle)
        # Codes that were never decoded are no unit vectors; only their direction counts.
        codes = TASKS["normals"].loss(prediction, 100 * target, mask, LABELS["normals"])
        torch.testing.assert_close(codes, oracle)

    @pytest.mark.parametrize("task", ["depth", "keypoints", "edges"])
    @moderate
    @given(seed=seeds)
    def test_values(self, task, seed):
        prediction, target, mask = batch_of(task, seed)
        oracle = F.l1_loss(prediction[:, 0][mask], target[:, 0][mask])
        torch.testing.assert_close(TASKS[task].loss(prediction, target, mask, LABELS[task]), oracle)

    @pytest.mark.parametrize("task", TASKS)
    def test_gradients_are_those_of_the_valid_pixels(self, task):
        prediction, target, mask = batch_of(task, 1)
        prediction.requires_grad_()
        TASKS[task].loss(prediction, target, mask, LABELS[task]).backward()
        assert prediction.grad.isfinite().all()
        assert (prediction.grad != 0).any(1)[mask].all()
        assert (prediction.grad == 0).movedim(1, -1)[~mask].all()

    @pytest.mark.parametrize("task", TASKS)
    def test_gradients_by_differences(self, task):
        prediction, target, mask = batch_of(task, 2)
        if target.is_floating_point():
            target = target.double()
        prediction = prediction.double().requires_grad_()
        labels = Labels(task, classes=LABELS[task].classes)
        assert torch.autograd.gradcheck(lambda values: TASKS[task].loss(values, target, mask, labels), prediction)

    @pytest.mark.parametrize("task", TASKS)
    def test_gradients_of_zero_predictions_are_finite(self, task):
        prediction, target, mask = batch_of(task, 3)
        prediction = torch.zeros_like(prediction, requires_grad=True)
        loss = TASKS[task].loss(prediction, target, mask, LABELS[task])
        loss.backward()
        assert loss.isfinite()
        assert prediction.grad.isfinite().all()

    @pytest.mark.parametrize("task", TASKS)
    def test_nothing_valid_is_zero_with_a_gradient(self, task):
        prediction, target, mask = batch_of(task, 4, share=0.0)
        prediction.requires_grad_()
        loss = TASKS[task].loss(prediction, target, mask, LABELS[task])
        loss.backward()
        assert loss.shape == ()
        assert loss == 0
        assert torch.equal(prediction.grad, torch.zeros_like(prediction))

    def test_known_losses(self):
        # Right angles cost 1, opposite vectors 2; the first pixel is right, the last one is not valid.
        prediction = torch.tensor([[1.0, 0, 0], [0, 2, 0], [-3, 0, 0], [9, 9, 9]]).T[None, :, None]
        target = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 1, 4)
        mask = torch.tensor([[[True, True, True, False]]])
        assert float(TASKS["normals"].loss(prediction, target, mask, LABELS["normals"])) == pytest.approx(1)
        # Depths off by 0, 2, 4 and (not valid) 8.
        prediction, target = torch.tensor([[[[1.0, 0, 5, 9]]]]), torch.tensor([[[[1.0, 2, 1, 1]]]])
        assert float(TASKS["depth"].loss(prediction, target, mask, LABELS["depth"])) == pytest.approx(2)


class TestSpaces:
    def test_finished_normals_have_length_one(self):
        prediction = batch_of("normals", 0)[0]
        lengths = TASKS["normals"].finish(prediction).norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths))
        assert torch.equal(TASKS["normals"].finish(torch.zeros(1, 3, 1, 1)), torch.zeros(1, 3, 1, 1))

    @pytest.mark.parametrize("task", sorted(set(TASKS) - {"normals"}))
    def test_other_predictions_are_finished_as_they_are(self, task):
        prediction, target, _ = batch_of(task, 0)
        assert TASKS[task].finish(prediction) is prediction
        assert TASKS[task].mirror(target) is target

    @pytest.mark.parametrize("shape", [(3, 2, 4), (5, 3, 2, 4)])
    def test_mirroring_normals_negates_their_x(self, shape):
        target = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        mirrored = TASKS["normals"].mirror(target)
        sign = torch.tensor([-1.0, 1, 1]).view(3, 1, 1)
        assert torch.equal(mirrored, sign * target)
        assert torch.equal(TASKS["normals"].mirror(mirrored), target)

    @moderate
    @given(st.floats(0.5, 2), st.floats(0.1, 100))
    def test_enlarging(self, scale, metres):
        def rescaled(value, unit):
            target = torch.full((1, 1, 1), value, dtype=torch.float64)
            return float(TASKS["depth"].rescale(target, scale, Labels("depth", unit=unit)))

        def code(metres):
            return math.log(1 + 512 * metres) / math.log(65536)

        assert rescaled(metres, "m") == pytest.approx(metres / scale)
        assert rescaled(0.3, "disparity/65535") == pytest.approx(0.3 * scale)
        assert rescaled(code(metres), "log code") == pytest.approx(code(metres / scale))

    def test_enlarging_keeps_float32_and_zero(self):
        for unit in depth.RESCALE:
            target = torch.tensor([[[0.0, 0.5]]])
            labels = Labels("depth", unit=unit)
            assert TASKS["depth"].rescale(target, 2.0, labels).dtype == torch.float32
            assert TASKS["depth"].rescale(target, 2.0, labels)[0, 0, 0] == 0
            torch.testing.assert_close(TASKS["depth"].rescale(target, 1.0, labels), target)

    def test_an_unknown_unit_of_depth_is_refused(self):
        with pytest.raises(PluginError, match=r"'mm'\. Known units: 'm', 'disparity/65535', 'log code'"):
            TASKS["depth"].rescale(torch.ones(1, 1, 1), 2.0, Labels("depth", unit="mm"))

    @pytest.mark.parametrize("task", sorted(set(TASKS) - {"depth"}))
    def test_other_targets_do_not_depend_on_scale(self, task):
        target = batch_of(task, 0)[1]
        assert TASKS[task].rescale(target, 2.0, LABELS[task]) is target
