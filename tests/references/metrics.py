"""Metrics pixel by pixel, from all predictions at once: what the streaming states must agree with.

A set is a list of batches, a batch a tuple of arrays: prediction [B, C, H, W], target [B, ..., H, W] and mask
[B, H, W].
"""

import math

import numpy as np


def pixels(batch):
    """Yield (prediction [C], target, valid) of every pixel of a batch."""
    prediction, target, mask = batch
    for image in range(len(mask)):
        for row in range(mask.shape[1]):
            for column in range(mask.shape[2]):
                yield (
                    prediction[image, :, row, column].astype(float),
                    target[image, ..., row, column],
                    bool(mask[image, row, column]),
                )


def average(batches, values, how):
    """Return the mean of the pairs (value, weight) in `values(batch)`, over pixels or over batches."""
    if how == "pixel":
        pairs = [pair for batch in batches for pair in values(batch)]
    else:
        pairs = []
        for batch in batches:
            mean = weighted_mean(values(batch))
            if not math.isnan(mean):
                pairs.append((mean, len(batch[2])))
    return weighted_mean(pairs)


def weighted_mean(pairs):
    weight = math.fsum(weight for _, weight in pairs)
    return math.fsum(value * weight for value, weight in pairs) / weight if weight else math.nan


def pixel_accuracy(batches, count_void, how):
    def values(batch):
        return [
            (float(valid and np.argmax(scores) == label), 1)
            for scores, label, valid in pixels(batch)
            if valid or count_void
        ]

    return average(batches, values, how)


def mean_iou(batches, over):
    seen = [
        (int(np.argmax(scores)), int(label))
        for batch in batches
        for scores, label, valid in pixels(batch)
        if valid
    ]
    ratios = []
    for cls in sorted({cls for pair in seen for cls in pair}):
        intersection = sum(guess == cls and label == cls for guess, label in seen)
        union = sum(guess == cls or label == cls for guess, label in seen)
        if over == "present" or intersection > 0:
            ratios.append(intersection / union)
    return sum(ratios) / len(ratios) if ratios else math.nan


def cross_entropy(batches, class_weights, how):
    def values(batch):
        return [
            (
                math.log(np.exp(scores).sum()) - scores[label],
                1.0 if class_weights is None else class_weights[label],
            )
            for scores, label, valid in pixels(batch)
            if valid
        ]

    return average(batches, values, how)


def absolute_error(batches, how):
    def values(batch):
        return [
            (abs(guess - truth), 1)
            for guesses, truths, valid in pixels(batch)
            if valid
            for guess, truth in zip(guesses, truths.astype(float), strict=True)
        ]

    return average(batches, values, how)


def relative_error(batches, how):
    def values(batch):
        return [(abs(guess[0] - truth[0]) / float(truth[0]), 1) for guess, truth, valid in pixels(batch) if valid]

    return average(batches, values, how)


def fraction_delta(batches, power, negative_hits):
    def within(guess, truth):
        if guess == 0:
            return False
        if guess < 0 and not negative_hits:
            return False
        return max(guess / truth, truth / guess) <= 1.25**power

    hits = [
        within(guess[0], float(truth[0])) for batch in batches for guess, truth, valid in pixels(batch) if valid
    ]
    return sum(hits) / len(hits) if hits else math.nan


def angles(batches):
    """Return the angle of every valid pixel, degrees."""
    return [
        angle(guess, truth.astype(float)) for batch in batches for guess, truth, valid in pixels(batch) if valid
    ]


def angle(one, other):
    """Return the angle between two vectors by Kahan's formula, degrees; 90 where one has length 0."""
    lengths = math.hypot(*one), math.hypot(*other)
    if 0 in lengths:
        return 90.0
    one, other = one * lengths[1], other * lengths[0]
    return math.degrees(2 * math.atan2(math.hypot(*(one - other)), math.hypot(*(one + other))))
