"""Streaming states against slow references, torchmetrics and scikit-learn, and on numbers checked by head."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from references import metrics as reference
from sklearn import metrics as sklearn_metrics
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassJaccardIndex,
)

from mtlprune_bench import errors
from mtlprune_bench.training import metrics

VOID = 255
SIZE = (3, 5)
moderate = settings(deadline=None, max_examples=30, derandomize=True)
averages = st.sampled_from(["pixel", "batch"])


@st.composite
def generators(draw):
    return torch.Generator().manual_seed(draw(st.integers(0, 2**32)))


@st.composite
def masks(draw):
    """Masks of 1 to 4 batches of 1 to 3 images, some of them without a valid pixel."""
    generator = draw(generators())
    shares = draw(st.lists(st.sampled_from([0.0, 0.3, 0.8, 1.0]), min_size=1, max_size=4))
    images = [draw(st.integers(1, 3)) for _ in shares]
    return [
        torch.rand(count, *SIZE, generator=generator) < share for count, share in zip(images, shares, strict=True)
    ]


@st.composite
def labelled(draw, classes=4):
    """Batches of class scores, classes (255 where invalid) and masks; not every class has to occur."""
    generator = draw(generators())
    last = draw(st.integers(1, classes))
    batches = []
    for mask in draw(masks()):
        scores = 3 * torch.randn(len(mask), classes, *SIZE, generator=generator)
        target = torch.randint(last, mask.shape, generator=generator)
        batches.append((scores, target.masked_fill(~mask, VOID), mask))
    return batches


@st.composite
def valued(draw, channels=1, low=-3.0, high=3.0):
    """Batches of normally distributed predictions, uniform targets (nan where invalid) and masks."""
    generator = draw(generators())
    batches = []
    for mask in draw(masks()):
        shape = (len(mask), channels, *SIZE)
        target = low + (high - low) * torch.rand(shape, generator=generator)
        prediction = target + torch.randn(shape, generator=generator)
        batches.append((prediction, target.masked_fill(~mask[:, None], torch.nan), mask))
    return batches


def feed(state, batches):
    for batch in batches:
        state.update(*batch)
    return state


def arrays(batches):
    return [tuple(tensor.numpy() for tensor in batch) for batch in batches]


def valid(batches):
    """Return all valid predictions [N, C] and targets [N, ...]."""
    predictions = torch.cat([prediction.movedim(1, -1)[mask] for prediction, _, mask in batches])
    targets = [(target if target.ndim == 3 else target.movedim(1, -1))[mask] for _, target, mask in batches]
    return predictions, torch.cat(targets)


def close(value, expected, tolerance=1e-9):
    return float(value) == pytest.approx(float(expected), rel=tolerance, abs=tolerance, nan_ok=True)


class TestConfusion:
    @moderate
    @given(labelled(), averages, st.sampled_from(["present", "hit"]), st.booleans())
    def test_agrees_with_the_reference(self, batches, average, over, count_void):
        state = feed(metrics.Confusion(4, over, count_void, average), batches)
        assert close(metrics.mean_value(state), reference.pixel_accuracy(arrays(batches), count_void, average))
        assert close(metrics.mean_iou(state), reference.mean_iou(arrays(batches), over))

    @moderate
    @given(labelled())
    def test_agrees_with_the_libraries(self, batches):
        state = feed(metrics.Confusion(4), batches)
        scores, labels = valid(batches)
        guesses = scores.argmax(1)
        oracle = MulticlassConfusionMatrix(4, ignore_index=VOID)
        for prediction, target, _ in batches:
            oracle.update(prediction, target)
        assert torch.equal(state.matrix, oracle.compute())
        if len(labels):
            expected = sklearn_metrics.confusion_matrix(labels, guesses, labels=range(4))
            assert np.array_equal(state.matrix, expected)
            assert close(metrics.mean_value(state), sklearn_metrics.accuracy_score(labels, guesses))
            accuracy = MulticlassAccuracy(4, average="micro")(guesses, labels)
            assert close(metrics.mean_value(state), accuracy, 1e-6)
            present = sorted(set(labels.tolist()) | set(guesses.tolist()))
            jaccard = MulticlassJaccardIndex(4, average=None)(guesses, labels)
            assert close(metrics.mean_iou(state), jaccard[present].mean(), 1e-6)

    def test_always_guessing_the_majority_looks_good_only_over_hit_classes(self):
        # 8 pixels of class 0, 1 of class 1, 1 of class 2, all taken for class 0: IoU 8/10, 0 and 0.
        target = torch.tensor([[[0] * 8 + [1, 2]]])
        prediction = torch.eye(4)[torch.zeros_like(target)].movedim(-1, 1)
        mask = torch.ones_like(target, dtype=torch.bool)
        present, hit = (
            feed(metrics.Confusion(4, over), [(prediction, target, mask)]) for over in ("present", "hit")
        )
        assert close(metrics.mean_iou(present), 0.8 / 3)
        assert close(metrics.mean_iou(hit), 0.8)

    def test_void_counted_as_wrong_lowers_accuracy_but_not_iou(self):
        # 6 of 8 labelled pixels are right, and 2 pixels are void: 6/8, or 6/10 where void is wrong.
        target = torch.tensor([[[0] * 6 + [1] * 2 + [VOID] * 2]])
        prediction = torch.eye(2)[torch.zeros_like(target)].movedim(-1, 1)
        left_out, counted = (
            feed(metrics.Confusion(2, count_void=void), [(prediction, target, target != VOID)])
            for void in (False, True)
        )
        assert close(metrics.mean_value(left_out), 6 / 8)
        assert close(metrics.mean_value(counted), 6 / 10)
        assert close(metrics.mean_iou(left_out), 3 / 8)
        assert close(metrics.mean_iou(counted), 3 / 8)

    def test_the_mean_of_batches_is_not_that_of_pixels(self):
        # First image: 1 valid pixel, right. Second: 10 valid pixels, none right.
        target = torch.tensor([[[0] + [VOID] * 9], [[1] * 10]])
        prediction = torch.eye(2)[torch.zeros_like(target)].movedim(-1, 1)
        images = [(prediction[i : i + 1], target[i : i + 1], target[i : i + 1] != VOID) for i in range(2)]
        pixel, batch = (feed(metrics.Confusion(2, average=average), images) for average in ("pixel", "batch"))
        assert close(metrics.mean_value(pixel), 1 / 11)
        assert close(metrics.mean_value(batch), 1 / 2)
        # One batch of both images is pooled over pixels either way.
        whole = feed(metrics.Confusion(2, average="batch"), [(prediction, target, target != VOID)])
        assert close(metrics.mean_value(whole), 1 / 11)

    def test_batches_weigh_as_many_images_as_they_have(self):
        # Three images wholly right in one batch, one wholly wrong in another.
        target = torch.zeros(4, 1, 2, dtype=torch.int64)
        prediction = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]])[:, :, None, None].expand(4, 2, 1, 2)
        mask = target == 0
        state = metrics.Confusion(2, average="batch")
        feed(state, [(prediction[:3], target[:3], mask[:3]), (prediction[3:], target[3:], mask[3:])])
        assert close(metrics.mean_value(state), 3 / 4)

    def test_no_hit_at_all(self):
        target = torch.ones(1, 1, 1, dtype=torch.int64)
        prediction = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
        hit, present = (
            feed(metrics.Confusion(2, over), [(prediction, target, target == 1)]) for over in ("hit", "present")
        )
        assert metrics.mean_iou(hit).isnan()
        assert metrics.mean_iou(present) == 0

    def test_labels_and_scores_must_fit_the_classes(self):
        mask = torch.ones(1, 1, 1, dtype=torch.bool)
        with pytest.raises(errors.DataError, match="label 2; the last is 1"):
            metrics.Confusion(2).update(torch.zeros(1, 2, 1, 1), torch.tensor([[[2]]]), mask)
        with pytest.raises(errors.PluginError, match="3 channels for 2 classes"):
            metrics.Confusion(2).update(torch.zeros(1, 3, 1, 1), torch.tensor([[[0]]]), mask)


class TestCrossEntropy:
    @moderate
    @given(labelled(), averages, st.sampled_from([None, (0.5, 2.0, 1.0, 7.0)]))
    def test_agrees_with_the_reference(self, batches, average, weights):
        state = feed(metrics.CrossEntropy(weights, average), batches)
        expected = reference.cross_entropy(arrays(batches), weights, average)
        assert close(metrics.mean_value(state), expected, 1e-5)

    @moderate
    @given(labelled(), st.sampled_from([None, (0.5, 2.0, 1.0, 7.0)]))
    def test_agrees_with_the_libraries(self, batches, weights):
        state = feed(metrics.CrossEntropy(weights), batches)
        scores, labels = valid(batches)
        if len(labels):
            by_class = torch.ones(4) if weights is None else torch.tensor(weights)
            expected = torch.nn.functional.cross_entropy(scores, labels, by_class)
            assert close(metrics.mean_value(state), expected, 1e-5)
            probabilities = scores.double().softmax(1)
            log_loss = sklearn_metrics.log_loss(
                labels, probabilities, sample_weight=by_class[labels], labels=range(4)
            )
            assert close(metrics.mean_value(state), log_loss, 1e-5)

    def test_equal_scores_cost_the_logarithm_of_the_number_of_classes(self):
        mask = torch.ones(1, 2, 2, dtype=torch.bool)
        state = feed(metrics.CrossEntropy(), [(torch.zeros(1, 8, 2, 2), torch.zeros(1, 2, 2).long(), mask)])
        assert close(metrics.mean_value(state), 3 * math.log(2), 1e-6)


class TestDeviation:
    @moderate
    @given(st.sampled_from([1, 2]).flatmap(valued), averages)
    def test_agrees_with_the_reference_and_torchmetrics(self, batches, average):
        state = feed(metrics.Deviation(average=average), batches)
        expected = reference.absolute_error(arrays(batches), average)
        assert close(metrics.mean_value(state), expected, 1e-6)
        predictions, targets = valid(batches)
        if len(targets) and average == "pixel":
            oracle = torchmetrics.MeanAbsoluteError()(predictions, targets)
            assert close(metrics.mean_value(state), oracle, 1e-5)

    def test_the_mean_of_batches_is_not_that_of_pixels(self):
        # One pixel off by 1, then three pixels off by 0.
        prediction, target = torch.tensor([1.0, 0, 0, 0]).view(4, 1, 1, 1), torch.zeros(4, 1, 1, 1)
        first = (prediction[:1], target[:1], torch.ones(1, 1, 1, dtype=torch.bool))
        second = tuple(tensor.view(1, *tensor.shape[1:-1], 3) for tensor in (prediction[1:], target[1:]))
        batches = [first, (*second, torch.ones(1, 1, 3, dtype=torch.bool))]
        assert close(metrics.mean_value(feed(metrics.Deviation(), batches)), 1 / 4)
        assert close(metrics.mean_value(feed(metrics.Deviation(average="batch"), batches)), 1 / 2)


class TestAngles:
    @moderate
    @given(valued(channels=3))
    def test_agrees_with_the_reference(self, batches):
        state = feed(metrics.Angles(), batches)
        angles = reference.angles(arrays(batches))
        assert close(metrics.mean_value(state), np.mean(angles) if angles else math.nan)
        assert close(metrics.median_angle(state), np.median(angles) if angles else math.nan, 0.011)
        for degrees in (11.25, 22.5, 30):
            expected = np.mean(np.array(angles) <= degrees) if angles else math.nan
            assert close(metrics.fraction_within(state, degrees), expected)

    @moderate
    @given(valued(channels=3))
    def test_agrees_with_the_cosine_of_torchmetrics(self, batches):
        predictions, targets = valid(batches)
        if len(targets):
            cosine = torchmetrics.CosineSimilarity(reduction="none")(predictions.double(), targets.double())
            expected = torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))
            state = feed(metrics.Angles(), batches)
            assert close(metrics.mean_value(state), expected.mean(), 1e-5)
            assert close(metrics.mean_value(state), expected.mean(), 1e-5)

    @pytest.mark.parametrize("count", [1, 2, 3, 1000, 100_001])
    @pytest.mark.parametrize("spread", [0.001, 0.1, 1.0])
    def test_the_median_is_within_a_twentieth_of_a_degree(self, count, spread):
        angles = spread * torch.pi * torch.rand(count, generator=torch.Generator().manual_seed(count)).double()
        prediction = torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)])[None, :, None]
        target = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 1, count)
        state = feed(metrics.Angles(), [(prediction, target, torch.ones(1, 1, count, dtype=torch.bool))])
        assert abs(metrics.median_angle(state) - np.median(torch.rad2deg(angles))) <= 0.0101

    @pytest.mark.parametrize(("angles", "error"), [([45.009], 0.0041), (np.linspace(20, 21, 100_001), 1e-4)])
    def test_the_median_is_interpolated_inside_its_bin(self, angles, error):
        radians = torch.deg2rad(torch.as_tensor(angles, dtype=torch.float64))
        prediction = torch.stack([radians.cos(), radians.sin(), torch.zeros_like(radians)])[None, :, None]
        target = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(prediction.shape)
        state = feed(metrics.Angles(), [(prediction, target, torch.ones(1, 1, len(radians)).bool())])
        assert abs(metrics.median_angle(state) - np.median(angles)) <= error

    def test_known_angles(self):
        # x against x, y, -x, x + y and (a vector without a direction) nothing: 0, 90, 180, 45 and 90 degrees.
        prediction = torch.tensor([[1.0, 0, 0], [0, 2, 0], [-3, 0, 0], [5, 5, 0], [0, 0, 0]]).T[None, :, None]
        target = torch.tensor([7.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 1, 5)
        state = feed(metrics.Angles((45.0001, 89.9, 90)), [(prediction, target, torch.ones(1, 1, 5).bool())])
        assert close(metrics.mean_value(state), 81)
        assert close(metrics.median_angle(state), 90, 1e-4)
        fractions = [metrics.fraction_within(state, degrees) for degrees in (45.0001, 89.9, 90)]
        assert [float(fraction) for fraction in fractions] == pytest.approx([0.4, 0.4, 0.8])

    def test_tiny_angles_are_exact(self):
        prediction = torch.tensor([1.0, 1e-5, 0]).view(1, 3, 1, 1)
        target = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
        state = feed(metrics.Angles(), [(prediction, target, torch.ones(1, 1, 1).bool())])
        assert float(metrics.mean_value(state)) == pytest.approx(math.degrees(1e-5), rel=1e-6)

    def test_what_is_not_a_number_is_never_right(self):
        prediction = torch.full((1, 3, 1, 1), torch.nan)
        state = feed(metrics.Angles(), [(prediction, torch.ones(1, 3, 1, 1), torch.ones(1, 1, 1).bool())])
        assert metrics.mean_value(state).isnan()
        assert close(metrics.median_angle(state), 180, 1e-4)
        assert metrics.fraction_within(state, 30) == 0


class TestRatios:
    @moderate
    @given(valued(low=0.05, high=2.0), averages, st.booleans())
    def test_agrees_with_the_reference(self, batches, average, negative_hits):
        state = feed(metrics.Ratios(average, negative_hits), batches)
        assert close(metrics.absolute_error(state), reference.absolute_error(arrays(batches), average))
        assert close(metrics.relative_error(state), reference.relative_error(arrays(batches), average))
        for power in (1, 2, 3):
            expected = reference.fraction_delta(arrays(batches), power, negative_hits)
            assert close(metrics.fraction_delta(state, power), expected)

    @moderate
    @given(valued(low=0.05, high=2.0))
    def test_agrees_with_the_libraries(self, batches):
        state = feed(metrics.Ratios(), batches)
        predictions, targets = valid(batches)
        if len(targets):
            absolute = torchmetrics.MeanAbsoluteError()(predictions, targets)
            relative = sklearn_metrics.mean_absolute_percentage_error(targets, predictions)
            assert close(metrics.absolute_error(state), absolute, 1e-5)
            assert close(metrics.relative_error(state), relative, 1e-5)

    def test_known_ratios(self):
        # Factors 1.25, 1.5 and 1.9 (within 1.25, 1.25² = 1.5625, 1.25³ = 1.953125), 2, and 0 and less.
        prediction = torch.tensor([1.25, 3.0, 1.9, 1.0, 0.0, -1.0]).view(1, 1, 1, 6)
        target = torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0, 1.0]).view(1, 1, 1, 6)
        batch = (prediction, target, torch.ones(1, 1, 6).bool())
        miss, hit = (feed(metrics.Ratios(negative_hits=hits), [batch]) for hits in (False, True))
        assert [6 * float(metrics.fraction_delta(miss, power)) for power in (1, 2, 3)] == pytest.approx([1, 2, 3])
        assert [6 * float(metrics.fraction_delta(hit, power)) for power in (1, 2, 3)] == pytest.approx([2, 3, 4])
        assert close(metrics.absolute_error(miss), (0.25 + 1 + 0.9 + 1 + 1 + 2) / 6, 1e-6)
        assert close(metrics.relative_error(miss), (0.25 + 0.5 + 0.9 + 0.5 + 1 + 2) / 6, 1e-6)

    def test_errors_are_averaged_over_batches_but_factors_are_pooled(self):
        # One pixel at twice its depth, then three at theirs.
        ones = torch.ones(1, 1, 1, 3)
        batches = [
            (2 * ones[..., :1], ones[..., :1], torch.ones(1, 1, 1).bool()),
            (ones, ones, torch.ones(1, 1, 3).bool()),
        ]
        pixel, batch = (feed(metrics.Ratios(average), batches) for average in ("pixel", "batch"))
        assert close(metrics.absolute_error(pixel), 1 / 4)
        assert close(metrics.absolute_error(batch), 1 / 2)
        assert close(metrics.relative_error(batch), 1 / 2)
        assert close(metrics.fraction_delta(batch, 1), 3 / 4)


READERS = {
    metrics.Confusion: [metrics.mean_value, metrics.mean_iou],
    metrics.CrossEntropy: [metrics.mean_value],
    metrics.Deviation: [metrics.mean_value],
    metrics.Angles: [
        metrics.mean_value,
        metrics.median_angle,
        lambda state: metrics.fraction_within(state, 30),
    ],
    metrics.Ratios: [
        metrics.absolute_error,
        metrics.relative_error,
        lambda state: metrics.fraction_delta(state, 1),
    ],
}


def states(**options):
    """Return an empty state of every kind that takes `options`."""
    kinds = {
        "Confusion": lambda: metrics.Confusion(4, **options),
        "CrossEntropy": lambda: metrics.CrossEntropy((0.5, 2.0, 1.0, 7.0), **options),
        "Deviation": lambda: metrics.Deviation(**options),
        "Angles": metrics.Angles,
        "Ratios": lambda: metrics.Ratios(**options),
    }
    return [pytest.param(kind, id=name) for name, kind in kinds.items()]


def images_for(state, count, seed=0):
    """Return `count` random images, as one batch that `state` takes."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(count, *SIZE, generator=generator) < 0.8
    if isinstance(state, (metrics.Confusion, metrics.CrossEntropy)):
        target = torch.randint(4, mask.shape, generator=generator).masked_fill(~mask, VOID)
        return torch.randn(count, 4, *SIZE, generator=generator), target, mask
    shape = (count, 3 if isinstance(state, metrics.Angles) else 1, *SIZE)
    target = 0.1 + torch.rand(shape, generator=generator)
    return target + torch.randn(shape, generator=generator), target, mask


def values(state):
    return [float(read(state)) for read in READERS[type(state)]]


@pytest.mark.parametrize("make", states())
@pytest.mark.parametrize("size", [1, 3, 4])
def test_pooled_values_do_not_depend_on_the_batches(make, size):
    batch = images_for(make(), 8)
    split = zip(*(tensor.split(size) for tensor in batch), strict=True)
    assert values(feed(make(), split)) == pytest.approx(values(feed(make(), [batch])), rel=1e-6)


@pytest.mark.parametrize("make", [*states(), *states(average="batch")])
def test_states_of_two_halves_add_up(make):
    batches = [images_for(make(), 2, seed) for seed in range(4)]
    one, other = feed(make(), batches[:1]), feed(make(), batches[1:])
    for sums, more in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        sums += more
    assert values(one) == pytest.approx(values(feed(make(), batches)))


@pytest.mark.parametrize("make", states())
def test_states_do_not_grow(make):
    state = feed(make(), [images_for(make(), 1)])
    sizes = [
        len(pickle.dumps(feed(state, [images_for(state, 2, seed) for seed in range(count)]))) for count in (1, 20)
    ]
    assert sizes[0] == sizes[1]
    assert all(tensor.dtype in (torch.float64, torch.int64) for tensor in state.state_dict().values())
    assert sum(tensor.numel() for tensor in state.state_dict().values()) <= metrics.BINS + 5


@pytest.mark.parametrize("make", [*states(), *states(average="batch")])
def test_nothing_valid_is_nan_and_changes_nothing(make):
    state = make()
    assert np.isnan(values(state)).all()
    prediction, target, mask = images_for(state, 2)
    nothing = (prediction, target, torch.zeros_like(mask))
    assert np.isnan(values(feed(state, [nothing]))).all()
    feed(state, [(prediction, target, mask)])
    before = values(copy.deepcopy(state))
    assert values(feed(state, [nothing])) == before


@pytest.mark.parametrize("make", states())
def test_predictions_may_need_gradients_and_are_left_alone(make):
    prediction, target, mask = images_for(make(), 2)
    copies = prediction.clone(), target.clone(), mask.clone()
    state = feed(make(), [(prediction.requires_grad_(), target, mask)])
    assert all(not tensor.requires_grad for tensor in state.buffers())
    for tensor, before in zip((prediction, target, mask), copies, strict=True):
        assert torch.equal(tensor, before)


def test_unknown_knobs_are_refused():
    with pytest.raises(errors.UsageError, match="Unknown average 'pixels'"):
        metrics.Deviation(average="pixels")
    with pytest.raises(errors.UsageError, match="Known: hit, present"):
        metrics.Confusion(2, iou_over="all")


def test_the_weighted_mean_of_nothing_is_zero_with_a_gradient():
    values = torch.tensor([2.0, 4.0], requires_grad=True)
    assert metrics.weighted_mean(values, torch.tensor([3.0, 1.0])) == 2.5
    nothing = metrics.weighted_mean(values, torch.tensor([False, False]))
    nothing.backward()
    assert nothing == 0
    assert torch.equal(values.grad, torch.zeros(2))
