"""Metrics: streaming states that never hold a prediction, and the functions that read numbers off them.

A state's `update(prediction [B, C, H, W], target [B, ..., H, W], mask bool [B, H, W])` takes predictions at
the size of their labels and in their space, batch after batch; what it holds are sums. With `cells`, int64
[H, W], a prediction is [B, C, h, w], and each pixel shows that cell of it: the sums are the same, without a
prediction at full size. Numbers are float64 scalars, nan where no pixel contributes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlprune_bench.errors import DataError, PluginError, unknown
from mtlprune_bench.training.pixels import best_class, picked, spread, surprise, tally

BINS = 18_000
BIN_WIDTH = 180 / BINS
CHUNK = 2**16
"""Pixels whose angles are computed at once: many, but so few that what comes in between stays in a cache."""


class State(nn.Module):
    """Sums over pixels: one of the measured values, one of their weights, and whatever a state adds.

    `shape` is that of the value. With `average` "pixel" every valid pixel of a set weighs the same; with
    "batch" what is averaged are the means of batches, each weighted by its number of images, batches without
    a valid pixel left out.
    """

    total: Tensor
    weight: Tensor

    def __init__(self, *shape: int, average: str = "pixel") -> None:
        super().__init__()
        self.average = one_of("average", average, ("pixel", "batch"))
        self.add_sum("total", *shape, dtype=torch.float64)
        self.add_sum("weight", dtype=torch.float64)

    def add_sum(self, name: str, *shape: int, dtype: torch.dtype = torch.int64) -> None:
        """Add the attribute `name`, a tensor [*shape] of zeros."""
        self.register_buffer(name, torch.zeros(shape, dtype=dtype))

    def add(self, total: Tensor, weight: Tensor, images: int) -> None:
        """Add a batch of `images`, in which values of weight `weight` sum up to `total` [*shape]."""
        if self.average == "batch":
            seen = weight > 0
            total, weight = torch.where(seen, images * total.double() / weight, 0.0), images * seen
        self.total += total.detach()
        self.weight += weight.detach()


class Confusion(State):
    """Which class was taken for which, for the mean IoU; the mean value is the pixel accuracy, in [0, 1].

    `update` takes scores [B, C, H, W] and classes int64 [B, H, W], whose value does not matter where the mask
    is false. `iou_over` says which classes the mean IoU is over: those "present" in labels or predictions,
    or those with a "hit". With `count_void`, pixels outside the mask count as wrong in the pixel accuracy.
    The matrix is pooled over pixels, whatever `average` is.
    Raises PluginError where the scores are not of `classes` classes, DataError where a label is not a class.
    """

    matrix: Tensor
    """How many pixels of a class (row) were taken for a class (column), int64 [classes, classes]."""

    def __init__(
        self, classes: int, iou_over: str = "present", count_void: bool = False, average: str = "pixel"
    ) -> None:
        super().__init__(average=average)
        self.classes = classes
        self.iou_over = one_of("classes of the mean IoU", iou_over, ("present", "hit"))
        self.count_void = count_void
        self.add_sum("matrix", classes, classes)

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor, cells: Tensor | None = None) -> None:
        """Count a batch."""
        if prediction.shape[1] != self.classes:
            raise PluginError(f"Predictions have {prediction.shape[1]} channels for {self.classes} classes.")
        labels = valid_classes(target, mask, self.classes)
        best = best_class(prediction)
        if cells is None:
            matrix = tally(labels, mask, best, self.classes, self.classes).sum(0)
        else:
            counts = tally(labels, mask, cells, self.classes, best[0].numel())
            matrix = torch.zeros_like(self.matrix).index_add_(1, best.flatten(), counts.transpose(0, 1).flatten(1))
        self.matrix += matrix
        pixels = torch.ones_like(mask) if self.count_void else mask
        self.add(matrix.diagonal().sum(), pixels.sum(), len(mask))


class CrossEntropy(State):
    """The mean cross-entropy of class scores, in nats; with `class_weights`, the mean weighted by class.

    `update` takes scores [B, C, H, W] and classes int64 [B, H, W], as `Confusion` does.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: tuple[float, ...] | None = None, average: str = "pixel") -> None:
        super().__init__(average=average)
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor, cells: Tensor | None = None) -> None:
        """Add a batch."""
        classes = valid_classes(target, mask, prediction.shape[1])
        if cells is None:
            errors = surprise(prediction, classes)
            weights = class_weights_of(classes, mask, self.class_weights, errors.dtype)
        else:
            logarithms = F.log_softmax(prediction.flatten(2), 1)
            weights = tally(classes, mask, cells, *logarithms.shape[1:]).double()
            if self.class_weights is not None:
                weights *= self.class_weights[:, None]
            # A class that is out of the question costs nothing where no pixel has it.
            errors = torch.where(weights > 0, -logarithms, 0.0)
        self.add((errors * weights).sum(dtype=torch.float64), weights.sum(dtype=torch.float64), len(mask))


class Deviation(State):
    """The mean absolute difference of predictions and targets [B, C, H, W], in their unit."""

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor, cells: Tensor | None = None) -> None:
        """Add a batch."""
        errors = absolute_difference(spread(prediction, cells), target, mask)
        self.add(errors.sum(dtype=torch.float64), mask.sum() * prediction.shape[1], len(mask))


class Angles(State):
    """Angles between predicted and true normals [B, 3, H, W] of any length, in degrees, pooled over pixels.

    Counts those of at most each of `thresholds` (degrees), and keeps a histogram for the median. A vector of
    length 0 has no direction and counts as 90 degrees off. A prediction that is not a number makes the mean
    nan, and counts as 180 degrees off elsewhere.
    """

    hits: Tensor
    histogram: Tensor

    def __init__(self, thresholds: tuple[float, ...] = (11.25, 22.5, 30.0)) -> None:
        super().__init__()
        self.thresholds = thresholds
        self.add_sum("hits", len(thresholds))
        self.add_sum("histogram", BINS)

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor, cells: Tensor | None = None) -> None:
        """Add a batch."""
        flat = (values.transpose(0, 1).flatten(1) for values in (spread(prediction, cells), target))
        chunks = zip(*(torch.split(values, CHUNK, 1) for values in flat), strict=True)
        # What is not valid is computed too, and left out afterwards: to leave it out at once takes longer.
        angles = torch.cat([angles_between(guess.double(), truth.double()) for guess, truth in chunks])
        valid = mask.flatten()
        bins = (angles / BIN_WIDTH).nan_to_num_(nan=BINS).clamp_(max=BINS - 1).long().masked_fill_(~valid, BINS)
        self.histogram += torch.bincount(bins, minlength=BINS + 1)[:BINS]
        self.hits += torch.stack(
            [((angles <= threshold) & valid).count_nonzero() for threshold in self.thresholds]
        )
        self.add(angles.masked_fill_(~valid, 0.0).sum(), valid.count_nonzero(), len(mask))


class Ratios(State):
    """Errors of depths [B, 1, H, W], and how many are within a factor 1.25, 1.25² and 1.25³ of the truth.

    The mean value [2] is the absolute and the relative error; the factors are pooled over pixels, whatever
    `average` is. A prediction of 0 or less misses every factor, unless `negative_hits`: then one below 0 is
    within all, as its ratios are negative. A valid target of 0 makes the relative error infinite. `space` maps
    predictions and targets to the values that are compared.
    """

    hits: Tensor
    count: Tensor

    def __init__(
        self,
        average: str = "pixel",
        negative_hits: bool = False,
        space: Callable[[Tensor], Tensor] = torch.Tensor.double,
    ) -> None:
        super().__init__(2, average=average)
        self.negative_hits = negative_hits
        self.space = space
        self.add_sum("hits", 3)
        self.add_sum("count")

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor, cells: Tensor | None = None) -> None:
        """Add a batch."""
        places = mask.flatten().nonzero()[:, 0]
        both = (picked(values[:, :1], places)[0].double() for values in (spread(prediction, cells), target))
        guess, truth = map(self.space, both)
        errors = (guess - truth).abs()
        self.add(torch.stack([errors.sum(), (errors / truth).sum()]), mask.sum(), len(mask))
        ratios = torch.maximum(guess / truth, truth / guess)
        if not self.negative_hits:
            ratios = torch.where(guess > 0, ratios, torch.inf)
        self.hits += torch.stack([(ratios <= 1.25**power).sum() for power in (1, 2, 3)])
        self.count += len(ratios)


def mean_value(state: State) -> Tensor:
    """Return the mean of what the state measures, in its unit."""
    return state.total / state.weight


def mean_iou(state: Confusion) -> Tensor:
    """Return intersection over union, averaged over the classes that `state.iou_over` names, in [0, 1]."""
    hits = state.matrix.diagonal()
    union = state.matrix.sum(0) + state.matrix.sum(1) - hits
    counted = (hits if state.iou_over == "hit" else union) > 0
    return (hits[counted].double() / union[counted]).mean()


def median_angle(state: Angles) -> Tensor:
    """Return the median angle, degrees in [0, 180], at most a bin of 0.01 degree from the exact one.

    It is the mean of the two middle angles where their number is even; inside a bin, angles are taken to be
    spread evenly.
    """
    reached = state.histogram.cumsum(0)
    count = reached[-1]
    if not count:
        return torch.full_like(state.total, torch.nan)
    middle = torch.stack([(count - 1) // 2, count // 2])
    bins = torch.searchsorted(reached, middle, right=True)
    inside = state.histogram[bins]
    part = (middle - (reached[bins] - inside) + 0.5) / inside.double()
    return ((bins + part) * BIN_WIDTH).mean()


def fraction_within(state: Angles, degrees: float) -> Tensor:
    """Return the fraction of angles of at most `degrees`, one of the state's thresholds, in [0, 1]."""
    return state.hits[state.thresholds.index(degrees)] / state.weight


def absolute_error(state: Ratios) -> Tensor:
    """Return the mean absolute error, in the labels' unit."""
    return mean_value(state)[0]


def relative_error(state: Ratios) -> Tensor:
    """Return the mean of the absolute error over the true value, a fraction of 0 or more."""
    return mean_value(state)[1]


def fraction_delta(state: Ratios, power: int) -> Tensor:
    """Return the fraction of values within a factor 1.25**power of the truth, `power` in 1..3, in [0, 1]."""
    return state.hits[power - 1] / state.count.double()


def cross_entropy(
    prediction: Tensor, target: Tensor, mask: Tensor, class_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each pixel, in nats, and the weight of each, 0 where invalid: [B, H, W].

    `prediction` is [B, C, H, W], `target` int64 [B, H, W], `class_weights` [C] or None for 1 each.
    """
    # Unlike torch's own for images, this is deterministic on a GPU, and invalid labels index nothing.
    classes = target.masked_fill(~mask, 0)
    errors = -F.log_softmax(prediction, 1).gather(1, classes[:, None])[:, 0]
    return errors, class_weights_of(classes, mask, class_weights, errors.dtype)


def class_weights_of(classes: Tensor, mask: Tensor, class_weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the weight of each pixel, that of its class, 0 outside `mask`: as `classes` and `mask` [B, H, W]."""
    return mask.to(dtype) if class_weights is None else class_weights[classes] * mask


def valid_classes(target: Tensor, mask: Tensor, count: int) -> Tensor:
    """Return `target` int64 [B, H, W] with class 0 outside `mask`.

    Raises DataError where a valid pixel has none of `count` classes.
    """
    classes = target.masked_fill(~mask, 0)
    for label in torch.stack(classes.aminmax()).tolist():
        if not 0 <= label < count:
            raise DataError(f"A valid pixel has label {label}; the last is {count - 1}, the first 0.")
    return classes


def absolute_difference(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return |prediction - target| [B, C, H, W], 0 outside `mask` [B, H, W] whatever the target is there."""
    valid = mask[:, None]
    return (prediction - target.masked_fill(~valid, 0)).abs() * valid


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of `values` weighted by `weights`, of one shape: differentiable, 0 if all weigh 0."""
    weight = weights.sum()
    return (values * weights).sum() / torch.where(weight > 0, weight, 1)


def absolute_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean absolute error of `prediction` [B, C, h, w] over the valid pixels, 0 where none is.

    `target` is [B, C, h, w], `mask` is [B, h, w].
    """
    return weighted_mean(absolute_difference(prediction, target, mask), mask[:, None].expand_as(prediction))


def angles_between(one: Tensor, other: Tensor) -> Tensor:
    """Return the angles [N], in degrees, between vectors [3, N] of any length; 90 where one has length 0."""
    # The arc tangent keeps its accuracy near 0 and 180 degrees, where the arc cosine loses half its digits.
    # Written out, as torch's norm takes several times as long.
    (a, b, c), (x, y, z) = one, other
    cross = [
        torch.addcmul(p * q, r, s, value=-1).square_() for p, q, r, s in ((b, z, c, y), (c, x, a, z), (a, y, b, x))
    ]
    sine = cross[0].add_(cross[1]).add_(cross[2]).sqrt_()
    cosine = (a * x).addcmul_(b, y).addcmul_(c, z)
    undefined = (sine == 0) & (cosine == 0)
    return torch.where(undefined, 90.0, torch.rad2deg(torch.atan2(sine, cosine)))


def one_of(kind: str, name: str, known: tuple[str, ...]) -> str:
    """Return `name`. Raises UsageError where it is not `known`."""
    if name not in known:
        raise unknown(kind, name, known)
    return name
