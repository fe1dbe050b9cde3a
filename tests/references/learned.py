"""Soft thresholds and adaptive loss weights in numpy: slow, each case spelt out, nothing carried along."""

from __future__ import annotations

import numpy as np


def soften(weights: np.ndarray, s: float) -> np.ndarray:
    """Return sign(W) max(|W| - sigmoid(s), 0), weight by weight."""
    sigma = 1 / (1 + np.exp(-s))
    softened = []
    for weight in weights.ravel():
        if weight > sigma:
            softened.append(weight - sigma)
        elif weight < -sigma:
            softened.append(weight + sigma)
        else:
            softened.append(0.0)
    return np.array(softened).reshape(weights.shape)


def central_differences(function, values: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Return the gradient of a scalar `function` at `values`, one entry at a time."""
    gradient = np.zeros_like(values)
    for place in np.ndindex(values.shape):
        above, below = values.copy(), values.copy()
        above[place] += step
        below[place] -= step
        gradient[place] = (function(above) - function(below)) / (2 * step)
    return gradient


def adaptive_weights(losses: np.ndarray, begin: int, window: int, relative: bool = True) -> np.ndarray:
    """Return the weights [T, K] of the losses [T, K], each step's from the whole past.

    Of the steps from `begin` on, the first has no change; the change of another is |L(i-1) - L(i)|, over L(i)
    where `relative`. The weights of a step with more than `window` changes, its own included, are the means of
    its last `window` changes, scaled to add up to K; those of other steps are 1.
    """
    steps, tasks = losses.shape
    weights = np.ones((steps, tasks))
    for i in range(steps):
        changes = []
        for j in range(begin + 1, i + 1):
            change = np.abs(losses[j - 1] - losses[j])
            changes.append(change / losses[j] if relative else change)
        if len(changes) > window:
            means = np.mean(changes[-window:], axis=0)
            weights[i] = tasks * means / means.sum() if means.sum() > 0 else weights[i - 1]
    return weights


def keep_highest(margins: np.ndarray, kept: int) -> np.ndarray:
    """Return the mask of the `kept` highest of `margins` [n]; of equal ones the first."""
    order = sorted(range(len(margins)), key=lambda i: (-margins[i], i))
    mask = np.zeros(len(margins), dtype=bool)
    mask[order[:kept]] = True
    return mask
