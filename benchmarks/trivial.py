"""What predictors without a network score on a dataset: the floor under every table.

    python -m benchmarks.trivial nyuv2

Segmentation: the class that is most frequent in training, everywhere. Normals: the constant direction with the
smallest mean angle on the test set itself, which no honest constant can beat. The rest: the median of the
training targets.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlprune_bench.adapters import Samples
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.runs.opening import open_dataset
from mtlprune_bench.runs.request import Request
from mtlprune_bench.tasks import Labels


def valid(samples: Samples, task: str) -> Tensor:
    """Return the valid target values of a split: [n] classes, or [C, n] values."""
    parts = [samples[i].targets[task][..., samples[i].masks[task]] for i in range(len(samples))]
    return torch.cat(parts, dim=-1)


def best_direction(normals: Tensor, steps: int = 300) -> Tensor:
    """Return the unit vector [3] with the smallest mean angle to `normals` [3, n], by gradient descent."""
    direction = normals.mean(1).requires_grad_()
    optimizer = torch.optim.Adam([direction], lr=0.02)
    for _ in range(steps):
        cosine = (F.normalize(direction, dim=0)[:, None] * normals).sum(0).clamp(-1 + 1e-6, 1 - 1e-6)
        optimizer.zero_grad()
        torch.acos(cosine).mean().backward()
        optimizer.step()
    return F.normalize(direction.detach(), dim=0)


def constant(labels: Labels, train: Samples, test: Samples) -> Tensor:
    """Return the constant prediction of a task: [C]."""
    if labels.classes:
        counts = torch.bincount(valid(train, labels.task), minlength=labels.classes)
        return F.one_hot(counts.argmax(), labels.classes).float() * 20
    values = valid(train, labels.task)
    if len(values) == 3:
        return best_direction(valid(test, labels.task))
    return values.median(1).values


def scores(dataset: str) -> Iterator[tuple[str, str, float]]:
    """Yield the task, metric and value of every metric of the constant predictions on the test set."""
    registry = load_registry()
    opened = open_dataset(Request(method="", dataset=dataset, sparsity=0.0, seed=0), registry)
    test = opened.splits.test
    for labels in opened.dataset.labels:
        value = constant(labels, opened.splits.train, test)
        metrics = registry.metrics_of(labels.task)
        states = {metric.state: metric.state(labels, opened.protocol) for metric in metrics}
        for i in range(len(test)):
            target, mask = test[i].targets[labels.task], test[i].masks[labels.task]
            prediction = value[:, None, None].expand(-1, *mask.shape)
            for state in states.values():
                state.update(prediction[None], target[None], mask[None])
        for metric in metrics:
            yield labels.task, metric.name, float(metric.read(states[metric.state]))


if __name__ == "__main__":
    for task, metric, value in scores(sys.argv[1] if len(sys.argv) > 1 else "nyuv2"):
        print(f"{task:14} {metric:16} {value:.4f}")
