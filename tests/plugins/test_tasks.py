"""The tasks: losses against torch's, what mirroring and enlarging do, and metrics under both protocols."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import metrics as reference
from skimage.color import rgb2lab
from torch.nn import functional as F

from mtlprune_bench import DISPARSE, STANDARD, Labels, PluginError, Task
from mtlprune_bench.plugins.tasks import depth, keypoints_edges, normals, segmentation
from mtlprune_bench.training import metrics

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
        ("depth", "absolute_error_metres"): (down, "m", 0, endless),
        ("depth", "relative_error_metres"): (down, "fraction", 0, endless),
        ("depth", "delta_1_metres"): (up, "fraction", 0, 1),
        ("depth", "delta_2_metres"): (up, "fraction", 0, 1),
        ("depth", "delta_3_metres"): (up, "fraction", 0, 1),
        ("keypoints", "error"): (down, "", 0, 2),
        ("edges", "error"): (down, "", 0, 2),
    }


def test_metrics_of_a_task_share_a_state():
    assert METRICS["segmentation", "mean_iou"].state is METRICS["segmentation", "pixel_accuracy"].state
    for task, ending in (("normals", ""), ("depth", "_metres")):
        for here in (True, False):
            chosen = {m.state for m in METRICS.values() if m.task == task and m.name.endswith(ending) is here}
            assert len(chosen) == (1 if here or ending else 0)


def metres(codes):
    """Return depths of log codes: z = (65536**t - 1) / 512."""
    return (65536 ** codes.astype(np.float64) - 1) / 512


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
    if name.endswith("_metres"):
        batches = [(metres(guess), metres(true), mask) for guess, true, mask in batches]
        name = name.removesuffix("_metres")
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


def shown(task, values, mask=None, labels=None):
    """Return the colours of `values` [N] or [C, N] in the picture of a task, int [N, 3]."""
    target = np.asarray(values)[..., None, :]
    mask = np.ones(target.shape[-1], bool) if mask is None else np.asarray(mask)
    return TASKS[task].picture(target, mask[None], labels or LABELS[task])[0].astype(int)


FORTY = Labels("segmentation", classes=40)
# The way from linear sRGB to Oklab, with the two matrices that the code does not use:
# https://bottosson.github.io/posts/oklab/
CONES = [[0.4122214708, 0.2119034982, 0.0883024619], [0.5363325363, 0.6806995451, 0.2817188376]]
CONES += [[0.0514459929, 0.1073969566, 0.6299787005]]
OKLAB = [[0.2104542553, 1.9779984951, 0.0259040371], [0.7936177850, -2.4285922050, 0.7827717662]]
OKLAB += [[-0.0040720468, 0.4505937099, -0.8086757660]]


class TestPictures:
    @pytest.mark.parametrize("task", TASKS)
    @moderate
    @given(seeds)
    def test_form_and_black_where_nothing_is_valid(self, task, seed):
        _, target, mask = (part[0].numpy() for part in batch_of(task, seed))
        picture = TASKS[task].picture(target, mask, LABELS[task])
        assert (picture.dtype, picture.shape) == (np.uint8, (3, 4, 3))
        assert (picture[~mask] == 0).all()
        assert (TASKS[task].picture(target, np.zeros_like(mask), LABELS[task]) == 0).all()

    def test_forty_classes_have_forty_colours_neighbours_the_farthest_apart(self):
        lab = rgb2lab(shown("segmentation", np.arange(40), labels=FORTY)[None] / 255)[0]
        apart = np.linalg.norm(lab[:, None] - lab, axis=-1)
        assert apart[~np.eye(40, dtype=bool)].min() > 12
        assert np.diagonal(apart, offset=1).min() > 60
        assert np.linalg.norm(lab, axis=-1).min() > 45, "too near to black"

    def test_colours_of_classes_in_oklab(self):
        encoded = shown("segmentation", np.arange(40), labels=FORTY) / 255
        linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
        lightness, a, b = (np.cbrt(linear @ np.array(CONES)) @ np.array(OKLAB)).T
        # Colours that sRGB does not have are the nearest that it has.
        exact = ((encoded > 0) & (encoded < 1)).all(-1)
        assert exact.sum() > 10
        assert np.allclose(lightness[exact], np.resize(segmentation.LIGHTNESS, 40)[exact], atol=0.005)
        turns = np.exp(2j * np.pi * np.arange(40) * (2 - (1 + 5**0.5) / 2))
        assert np.allclose((a + 1j * b)[exact], segmentation.CHROMA * turns[exact], atol=0.005)

    def test_a_class_has_its_colour_in_every_dataset(self):
        few, many = (
            shown("segmentation", np.arange(5), labels=Labels("segmentation", classes=n)) for n in (5, 300)
        )
        assert np.array_equal(few, many)

    def test_normals_are_red_to_the_right_green_up_and_blue_to_the_viewer(self):
        right, up, near = (1, 0, 0), (0, -1, 0), (0, 0, -1)
        faces = np.array([right, up, near])
        assert shown("normals", faces.T).tolist() == [[255, 128, 128], [128, 255, 128], [128, 128, 255]]
        assert shown("normals", -faces.T).tolist() == [[0, 128, 128], [128, 0, 128], [128, 128, 0]]

    @pytest.mark.parametrize("unit", depth.RESCALE)
    def test_what_is_near_is_bright(self, unit):
        metres = np.linspace(1, 9, 200)
        codes = {"m": metres, "disparity/65535": 0.1 / metres, "log code": np.log1p(metres)}[unit]
        colours = shown("depth", codes[None], labels=Labels("depth", unit=unit))
        lightness = rgb2lab(colours[None] / 255)[0, :, 0]
        assert (np.diff(lightness) <= 0.5).all()
        assert lightness[0] > 85
        assert lightness[-1] < 20

    def test_a_few_far_pixels_do_not_take_the_colours_of_the_rest(self):
        metres = np.linspace(1, 2, 1000)
        without = shown("depth", metres[None])
        metres[-10:] = 1000
        assert np.abs(shown("depth", metres[None])[:990] - without[:990]).max() < 12
        assert (shown("depth", metres[None])[-20:] == without[-1]).all()

    def test_equal_depths_have_one_colour(self):
        colours = shown("depth", np.full((1, 5), 3.0), mask=[True, True, False, True, True])
        assert len(np.unique(colours, axis=0)) == 2
        assert (colours[2] == 0).all()

    @pytest.mark.parametrize("task", ["keypoints", "edges"])
    def test_strength_is_shown_from_minus_one_to_one_whatever_there_is(self, task):
        colours = shown(task, np.array([[-1.0, -0.5, 0.0, 0.5, 1.0]]))
        assert np.allclose(colours[[0, 2, 4]], [[0, 0, 3], [188, 55, 84], [252, 255, 164]], atol=1)
        assert np.array_equal(shown(task, np.array([[0.0, 0.5]])), colours[2:4])
        lightness = rgb2lab(colours[None] / 255)[0, :, 0]
        assert (np.diff(lightness) > 10).all()

    def test_tasks_without_a_picture_are_grey_over_the_valid_range_of_their_first_channel(self):
        plain = Task(name="plain", description="", loss=None)
        target = np.array([[[2.0, 3.0], [4.0, np.nan]], [[9.0, 9.0], [9.0, 9.0]]])
        mask = np.isfinite(target[0])
        for values in (target, target[:1], target[0]):
            picture = plain.picture(values, mask, Labels("plain"))
            assert (picture.dtype, picture.shape) == (np.uint8, (2, 2, 3))
            assert picture[..., 0].tolist() == [[0, 128], [255, 0]]
            assert (picture == picture[..., :1]).all()
        assert (plain.picture(target, np.zeros_like(mask), Labels("plain")) == 0).all()
        assert (plain.picture(np.ones((1, 2, 2)), mask, Labels("plain")) == 0).all()
