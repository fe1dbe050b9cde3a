"""The traps of this field's data, in the order of docs/data.md: what either protocol does about each."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mtlprune_bench import DISPARSE, STANDARD, DataError, Labels, Recipe, Sample, Splits
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.plugins.datasets.nyuv2 import adashare
from mtlprune_bench.tasks import Objective, enlarge, shrink
from mtlprune_bench.training.batches import Stream, evaluation_batches, network_input, padding_colour

BOTH = (STANDARD, DISPARSE)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.125)
ROUND_TRIP = Recipe(steps=1, batch=1, crop=8, scale_low=1.0, scale_high=1.0, mirror=0.0)


@pytest.fixture(scope="module")
def registry():
    return load_registry()


def decoded(layout, task, array, protocol, labels=None):
    """Return the target and mask of stored labels."""
    return layout.columns[task].decode((np.asarray(array),), labels or Labels(task), protocol)


def codes_of(vectors):
    """Return the codes of NYU-v2 of unit normals [..., 3] in the camera frame, uint8 [3, ...]."""
    arrays = np.moveaxis(np.asarray(vectors, dtype=np.float64), -1, 0)
    return adashare.encode_normals(arrays, np.ones(arrays.shape[1:], dtype=bool))


def angle(first, second):
    """Return the angle in degrees between two vectors."""
    return math.degrees(math.acos(np.clip(np.dot(first, second), -1, 1)))


class One:
    """A split of one sample of 8 x 8 pixels, or of any number of copies of it."""

    def __init__(self, sample, count=1):
        self.sample, self.count = sample, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.sample


def batch_of(registry, task, target, protocol, recipe=ROUND_TRIP, labels=None, image=None):
    """Return the training batch of one sample with labels for `task` under `protocol`."""
    size = target.shape[-2:]
    image = torch.zeros(3, *size, dtype=torch.uint8) if image is None else image
    samples = One(Sample.of(image, {task: target}, {task: torch.ones(size, dtype=torch.bool)}))
    splits = Splits(train=samples, validation=samples, test=samples, origin="", fingerprint="", mean=MEAN, std=STD)
    return Stream(splits, objective(registry, task, protocol, labels), recipe, seed=0)[0]


def objective(registry, task, protocol, labels=None):
    return Objective({task: registry.get("tasks", task)}, {task: labels or Labels(task)}, {task: 1.0}, protocol)


def test_trap_1_normals_that_are_never_decoded_look_closer_than_they_are():
    """Over random pairs of normals that a camera can see, not decoding halves the angles and more."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(1, 2000, 3))
    vectors[..., 2] = -np.abs(vectors[..., 2])
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    angles = {}
    for protocol in BOTH:
        normals, _ = decoded(adashare.ADASHARE, "normals", codes_of(vectors), protocol)
        pairs = np.split(normals[:, 0], 2, axis=1)
        angles[protocol.name] = np.mean([angle(a, b) for a, b in zip(pairs[0].T, pairs[1].T, strict=True)])
        assert np.allclose(np.linalg.norm(normals, axis=0), 1, atol=1e-5)
        if protocol is STANDARD:
            assert np.allclose(np.moveaxis(normals, 0, -1), vectors, atol=0.02)
        else:
            assert (normals >= 0).all(), "all in one octant"
    assert angles["standard"] > 55
    assert angles["disparse"] < angles["standard"] / 2


MIRRORED = replace(ROUND_TRIP, mirror=1.0)


def test_trap_2_mirroring_leaves_the_x_of_nyu_normals_as_it_was(registry):
    normals = F.normalize(torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)), dim=0)
    standard, disparse = (
        batch_of(registry, "normals", normals, protocol, MIRRORED).targets["normals"][0] for protocol in BOTH
    )
    assert torch.equal(disparse, normals.flip(-1))
    assert torch.equal(standard, torch.stack([-normals[0], normals[1], normals[2]]).flip(-1))


def test_trap_2_taskonomys_normals_are_mirrored_by_both(registry):
    (labels,) = (label for label in registry.get("datasets", "taskonomy").labels if label.task == "normals")
    normals = F.normalize(torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)), dim=0)
    standard, disparse = (
        batch_of(registry, "normals", normals, protocol, MIRRORED, labels).targets["normals"][0]
        for protocol in BOTH
    )
    assert torch.equal(standard, torch.stack([-normals[0], normals[1], normals[2]]).flip(-1))
    assert torch.equal(disparse, standard)


def test_trap_3_zero_normals_count_as_valid(registry):
    grey = np.full((3, 1, 1), 127, dtype=np.uint8)
    _, mask = decoded(adashare.ADASHARE, "normals", grey, STANDARD)
    vector, counted = decoded(adashare.ADASHARE, "normals", grey, DISPARSE)
    assert not mask.any()
    assert counted.all()
    assert np.allclose(vector.ravel(), 3**-0.5)


@pytest.mark.parametrize("protocol", BOTH)
def test_trap_4_masks_are_explicit_and_padding_is_outside_them(registry, protocol):
    white = np.full((3, 1, 2), 255, dtype=np.uint8)
    white[:, 0, 1] = 254
    normals, mask = decoded(adashare.ADASHARE, "normals", white, protocol)
    assert mask.tolist() == [[False, True]]
    assert not normals[:, ~mask].any(), "no number stands for what is not there"
    batch = batch_of(registry, "normals", torch.ones(3, 4, 4), protocol)
    assert int(batch.masks["normals"].sum()) == 16
    assert batch.masks["normals"][0, 2:6, 2:6].all()


def scores(classes, count=3):
    """Return predictions [1, count, 1, N] that are sure of `classes`."""
    return F.one_hot(torch.tensor([[classes]]), count).movedim(-1, 1).float()


def segmentation(registry, protocol, labels, batches):
    """Return mean IoU and pixel accuracy of batches of (predicted, true) classes; -1 is void."""
    by_name = {metric.name: metric for metric in registry.metrics_of("segmentation")}
    state = by_name["mean_iou"].state(labels, protocol)
    for predicted, true in batches:
        target = torch.tensor([[true]])
        state.update(scores(predicted, labels.classes), target.clamp(min=0), target >= 0)
    return [float(by_name[name].read(state)) for name in ("mean_iou", "pixel_accuracy")]


def test_trap_5_void_pixels_count_as_wrong_on_cityscapes(registry):
    cityscapes = Labels("segmentation", classes=3, negative_void=True)
    batches = [([0, 1, 1, 1], [0, 1, 1, -1])]
    assert segmentation(registry, STANDARD, cityscapes, batches) == [1, 1]
    assert segmentation(registry, DISPARSE, cityscapes, batches) == [1, pytest.approx(3 / 4)]
    assert segmentation(registry, DISPARSE, replace(cityscapes, negative_void=False), batches) == [1, 1]


def test_trap_6_classes_that_are_never_right_are_left_out(registry):
    labels = Labels("segmentation", classes=3)
    batches = [([0] * 10, [0] * 8 + [1, 2])]
    assert segmentation(registry, STANDARD, labels, batches)[0] == pytest.approx(0.8 / 3)
    assert segmentation(registry, DISPARSE, labels, batches)[0] == pytest.approx(0.8)


def test_trap_7_accuracy_is_a_mean_of_batches(registry):
    labels = Labels("segmentation", classes=3)
    batches = [([0], [1]), ([0, 0, 0], [0, 0, 0])]
    assert segmentation(registry, STANDARD, labels, batches)[1] == pytest.approx(3 / 4)
    assert segmentation(registry, DISPARSE, labels, batches)[1] == pytest.approx(1 / 2)


def depth(registry, protocol, labels, predicted, true):
    """Return the numbers of depth, by metric."""
    found = {}
    for metric in (metric for metric in registry.metrics_of("depth") if metric.measures(labels)):
        state = metric.state(labels, protocol)
        state.update(torch.tensor([[[predicted]]]), torch.tensor([[[true]]]), torch.ones(1, 1, len(true)).bool())
        found[metric.name] = float(metric.read(state))
    return found


def test_trap_8_a_negative_depth_is_within_every_factor(registry):
    metres = Labels("depth", unit="m")
    standard, disparse = (depth(registry, protocol, metres, [-1.0, 1.0], [1.0, 1.0]) for protocol in BOTH)
    assert [standard[f"delta_{power}"] for power in (1, 2, 3)] == [0.5] * 3
    assert [disparse[f"delta_{power}"] for power in (1, 2, 3)] == [1.0] * 3


@pytest.mark.parametrize("protocol", BOTH)
def test_trap_9_errors_of_log_codes_are_also_given_in_metres(registry, protocol):
    """An error of 26 % at 2 metres is one of 3 % of its code, and within every factor there."""
    code = [math.log(1 + 512 * metres) / math.log(65536) for metres in (2.0, 2.52)]
    found = depth(registry, protocol, Labels("depth", unit="log code"), [code[1]], [code[0]])
    assert found["absolute_error"] == pytest.approx(0.021, abs=1e-3)
    assert found["relative_error"] == pytest.approx(0.033, abs=1e-3)
    assert found["delta_1"] == 1
    assert found["absolute_error_metres"] == pytest.approx(0.52, abs=1e-4)
    assert found["relative_error_metres"] == pytest.approx(0.26, abs=1e-4)
    assert (found["delta_1_metres"], found["delta_2_metres"]) == (0, 1)


def test_trap_9_metres_are_in_metres_alone(registry):
    names = depth(registry, STANDARD, Labels("depth", unit="m"), [1.0], [1.0])
    assert not any(name.endswith("_metres") for name in names)


@pytest.mark.parametrize("unit", ["m", "disparity/65535", "log code"])
def test_trap_11_depth_is_not_divided_by_the_enlargement(registry, unit):
    target = torch.full((1, 8, 8), 0.25)
    recipe = replace(ROUND_TRIP, scale_low=1.5, scale_high=1.5)
    labels = Labels("depth", unit=unit)
    standard, disparse = (
        float(batch_of(registry, "depth", target, protocol, recipe, labels).targets["depth"].mean())
        for protocol in BOTH
    )
    metres = (65536**0.25 - 1) / 512
    expected = {
        "m": 0.25 / 1.5,
        "disparity/65535": 0.25 * 1.5,
        "log code": math.log(1 + 512 * metres / 1.5) / math.log(65536),
    }
    assert standard == pytest.approx(expected[unit], rel=1e-5)
    assert disparse == pytest.approx(0.25)


def test_trap_12_images_are_padded_with_black(registry):
    image = torch.full((3, 4, 4), 200, dtype=torch.uint8)
    standard, disparse = (
        batch_of(registry, "normals", torch.ones(3, 4, 4), protocol, image=image) for protocol in BOTH
    )
    assert torch.allclose(standard.images[0, :, 0, 0], torch.zeros(3), atol=1e-5), "the mean, normalised"
    assert torch.allclose(disparse.images[0, :, 0, 0], -255 * torch.tensor(MEAN).flip(0), atol=1e-4)
    for batch in (standard, disparse):
        assert not batch.masks["normals"][0, 0].any()


def test_trap_14_the_error_of_segmentation_is_weighted_by_class(registry):
    """Weights of classes are in the loss and in the reported error of both protocols."""
    (error,) = (metric for metric in registry.metrics_of("segmentation") if metric.name == "error")
    logits, target = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 2), torch.tensor([[[0, 1]]])
    right, wrong = (-torch.log_softmax(torch.tensor([2.0, 0.0]), 0)).tolist()
    for protocol in BOTH:
        state = error.state(Labels("segmentation", classes=2, class_weights=(1.0, 3.0)), protocol)
        state.update(logits, target, torch.ones(1, 1, 2).bool())
        assert float(error.read(state)) == pytest.approx((right + 3 * wrong) / 4, rel=1e-5)


def test_trap_15_nearest_resizing_shifts_labels_against_features():
    """A ramp along 480 rows, read at 61 grid points and spread out again, comes back shifted by 8 pixels."""
    ramp = torch.arange(480.0).view(1, 1, 480, 1).expand(1, 1, 480, 8)
    shifts = {}
    for protocol in BOTH:
        coarse = shrink(ramp, (61, 8), protocol.resize)
        back = enlarge(coarse, (480, 8), protocol.resize)
        shifts[protocol.name] = float((back - ramp)[0, 0, -1, 0])
    assert abs(shifts["standard"]) < 1
    assert shifts["disparse"] == pytest.approx(-8, abs=1)


@pytest.mark.parametrize("protocol", BOTH)
def test_trap_16_depth_of_nyu_has_a_loss_and_a_mask(registry, protocol):
    dataset = registry.get("datasets", "nyuv2-3task")
    assert [label.task for label in dataset.labels] == ["segmentation", "normals", "depth"]
    metres = np.array([[[0.0, 2e-5, 1.5, np.nan]]], dtype=np.float32)
    target, mask = decoded(adashare.ADASHARE, "depth", metres, protocol)
    assert mask.tolist() == [[False, False, True, False]]
    task = registry.get("tasks", "depth")
    loss = task.loss(torch.ones(1, 1, 1, 4), torch.from_numpy(target)[None], torch.from_numpy(mask)[None], None)
    assert float(loss) == pytest.approx(0.5)


def test_trap_18_a_bad_sample_is_an_error_and_never_another_sample(registry):
    class Bad(One):
        def __getitem__(self, index):
            raise DataError("rgb/7.png is damaged.")

    bad = Bad(None)
    splits = Splits(train=bad, validation=bad, test=bad, origin="", fingerprint="", mean=MEAN, std=STD)
    for protocol in BOTH:
        goal = objective(registry, "normals", protocol)
        with pytest.raises(DataError, match=r"rgb/7\.png"):
            Stream(splits, goal, ROUND_TRIP, 0)[0]
        with pytest.raises(DataError, match=r"rgb/7\.png"):
            list(evaluation_batches(bad, splits, goal, 1))


@pytest.mark.parametrize("protocol", BOTH)
def test_trap_19_images_of_any_size_are_normalised(protocol):
    splits = Splits(train=(), validation=(), test=(), origin="", fingerprint="", mean=MEAN, std=STD)
    for size in ((480, 640), (7, 5), (1, 1)):
        image = torch.full((3, *size), 100, dtype=torch.uint8)
        assert network_input(image, splits, protocol).shape == (3, *size)


def test_trap_20_no_two_workers_draw_the_same_crop(registry):
    image = torch.arange(64 * 64).view(1, 64, 64).expand(3, 64, 64).remainder(251).to(torch.uint8)
    sample = Sample.of(image, {"normals": torch.ones(3, 64, 64)}, {"normals": torch.ones(64, 64).bool()})
    samples = One(sample, 16)
    splits = Splits(train=samples, validation=samples, test=samples, origin="", fingerprint="", mean=MEAN, std=STD)
    recipe = replace(ROUND_TRIP, batch=16, scale_low=0.5, scale_high=1.5, mirror=0.5)
    stream = Stream(splits, objective(registry, "normals", STANDARD), recipe, 0, workers=2)
    batch = next(stream.start(0))
    assert len({crop.numpy().tobytes() for crop in batch.images}) == 16


def test_trap_22_images_are_rgb_inside_and_bgr_only_for_the_network():
    splits = Splits(train=(), validation=(), test=(), origin="", fingerprint="", mean=MEAN, std=STD)
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1)
    standard, disparse = (network_input(red, splits, protocol).ravel() for protocol in BOTH)
    assert int(standard.argmax()) == 0
    assert int(disparse.argmax()) == 2
    assert padding_colour(splits, STANDARD).tolist() == pytest.approx([255 * value for value in MEAN])


def test_trap_26_the_mean_angle_is_called_the_mean_angle(registry):
    """SimonVandenhende's meter returns the mean under the name rmse; there is no such name here."""
    names = [metric.name for metric in registry.metrics_of("normals")]
    assert "mean_angle" in names
    assert not any("rms" in name for name in names)
