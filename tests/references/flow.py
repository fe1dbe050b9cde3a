"""Gradient flow and synaptic flow in numpy: closed formulas and sums written out, no autograd."""

from __future__ import annotations

import numpy as np


def least_squares_scores(inputs, targets, weight):
    """Return weight * (H @ g) of the loss 0.5 * |X w - y|^2: g = X'(X w - y), H = X'X.

    `inputs` X are [rows, features], `targets` y [rows], `weight` w [features].
    """
    gradient = inputs.T @ (inputs @ weight - targets)
    hessian = inputs.T @ inputs
    return weight * (hessian @ gradient)


def softmax_scores(pieces, weight, temperature):
    """Return weight * (H @ g) of softmax regression, its loss the sum over pieces of the mean cross-entropy.

    Each of `pieces` is (inputs [rows, features], classes [rows]); `weight` is [features, classes], and the
    logits are inputs @ weight / temperature.
    """
    gradient = np.zeros(weight.size)
    hessian = np.zeros((weight.size, weight.size))
    for inputs, classes in pieces:
        for x, c in zip(inputs, classes, strict=True):
            odds = np.exp(x @ weight / temperature)
            p = odds / odds.sum()
            hit = np.eye(len(p))[c]
            gradient += np.outer(x, p - hit).ravel() / temperature / len(inputs)
            curvature = np.diag(p) - np.outer(p, p)
            hessian += np.kron(np.outer(x, x), curvature) / temperature**2 / len(inputs)
    return weight * (hessian @ gradient).reshape(weight.shape)


def slope(function, step):
    """Return the derivative of `function` at 0, by a central difference."""
    return (function(step) - function(-step)) / (2 * step)


def chain_scores(matrices, pixels):
    """Return each matrix's synaptic flow in the linear chain y = M_n ... M_1 x, for `pixels` inputs of ones.

    The flow through an entry is what arrives at its column, times the entry, times what its row passes on.
    """
    positive = [np.abs(matrix) for matrix in matrices]
    scores = []
    for place, matrix in enumerate(positive):
        arriving = np.ones(positive[0].shape[1])
        for before in positive[:place]:
            arriving = before @ arriving
        passed_on = np.ones(positive[-1].shape[0])
        for after in reversed(positive[place + 1 :]):
            passed_on = after.T @ passed_on
        scores.append(pixels * passed_on[:, None] * matrix * arriving[None, :])
    return scores


def convolve(image, weight, bias, padding):
    """Return `image` [in, H, W] convolved with `weight` [out, in, k, k], position by position."""
    size = weight.shape[-1]
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    rows, columns = padded.shape[1] - size + 1, padded.shape[2] - size + 1
    result = np.zeros((len(weight), rows, columns))
    for row in range(rows):
        for column in range(columns):
            window = padded[:, row : row + size, column : column + size]
            result[:, row, column] = bias + (weight * window).sum(axis=(1, 2, 3))
    return result


def flow_without(layers, size, missing=None):
    """Return the summed output, for a square image of ones, of layers made positive.

    Each of `layers` is ("conv", weight, bias, padding) or ("norm", factor, offset, eps), the second with mean
    0 and variance 1. `missing` = (layer, index) names a weight of a convolution to leave out.
    """
    image = np.ones((layers[0][1].shape[1], size, size))
    for place, (kind, first, second, number) in enumerate(layers):
        first, second = np.abs(first), np.abs(second)
        if missing is not None and missing[0] == place:
            first[missing[1]] = 0
        if kind == "conv":
            image = convolve(image, first, second, number)
        else:
            image = image / np.sqrt(1 + number) * first[:, None, None] + second[:, None, None]
    return image.sum()


def removal_scores(layers, size):
    """Return, for each convolution, how much less flows out of the layers without each of its weights.

    As the summed output is linear in every single weight, that is weight * derivative.
    """
    whole = flow_without(layers, size)
    return [
        np.array(
            [whole - flow_without(layers, size, (place, index)) for index in np.ndindex(weight.shape)]
        ).reshape(weight.shape)
        for place, (kind, weight, _, _) in enumerate(layers)
        if kind == "conv"
    ]
