"""Evaluation: a pass over a split, with streaming metrics that never hold predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from mtlprune_bench.store import LOSS
from mtlprune_bench.tasks import Batch, Metric, Objective, State
from mtlprune_bench.training.pixels import cells_of

FEW = 4
"""From so many pixels a cell of a prediction on, it pays to look at cells."""


@dataclass(frozen=True)
class Value:
    """A measured number; `task` "" stands for all tasks together."""

    task: str
    metric: str
    value: float
    unit: str
    higher_is_better: bool


def evaluate(
    model: nn.Module,
    objective: Objective,
    metrics: Mapping[str, Sequence[Metric]],
    batches: Iterable[Batch],
    device: torch.device,
) -> list[Value]:
    """Return the losses of `model` on `batches`, each task's and the weighted total, and its `metrics` by task.

    Losses are means over batches weighted by their number of images, at the resolution of the predictions,
    as in training. The model is measured in eval mode and left in the mode it had.
    """
    states = {
        (task, metric.state): metric.state(objective.labels[task], objective.protocol).to(device)
        for task, chosen in metrics.items()
        for metric in chosen
    }
    for state in states.values():
        # A process measures all of a split; a torchmetrics.Metric would ask the others for their shares.
        state.distributed_available_fn = lambda: False  # type: ignore[attr-defined]
    sums = torch.zeros(len(objective.tasks), dtype=torch.float64, device=device)
    images = 0
    training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in batches:
            batch = batch.to(device)
            outputs = model(batch.images)
            losses = objective.losses(outputs, batch)
            sums += torch.stack(list(losses.values())).double() * len(batch.images)
            images += len(batch.images)
            if states:
                _update(states, objective, outputs, batch)
    model.train(training)
    means = dict(zip(objective.tasks, (sums / images).tolist(), strict=True))
    total = sum(objective.weights[task] * loss for task, loss in means.items())
    values = [Value("", LOSS, total, "", False)]
    for task, loss in means.items():
        values.append(Value(task, LOSS, loss, "", False))
        for metric in metrics.get(task, ()):
            number = float(metric.read(states[task, metric.state]))
            unit = metric.unit or objective.labels[task].unit
            values.append(Value(task, metric.name, number, unit, metric.higher_is_better))
    return values


def _update(
    states: Mapping[tuple[str, Any], State], objective: Objective, outputs: Mapping[str, Tensor], batch: Batch
) -> None:
    """Add the `outputs` [B, C, h, w] for a batch to the states, whose keys begin with their task.

    Where each pixel shows one of few cells, states that can are given the cells, and nothing is enlarged.
    """
    height, width = batch.images.shape[-2:]
    nearest = objective.protocol.resize == "nearest"
    takers = {
        (task, kind)
        for (task, kind), state in states.items()
        if nearest and "cells" in signature(state.update).parameters
        if FEW * outputs[task][0, 0].numel() <= height * width
    }
    small = {task: objective.tasks[task].finish(outputs[task]) for task, _ in takers}
    cells = {task: cells_of(outputs[task], (height, width)) for task in small}
    large = objective.predictions(outputs, (height, width)) if len(takers) < len(states) else {}
    for key, state in states.items():
        task = key[0]
        target, mask = batch.targets[task], batch.masks[task]
        if key in takers:
            state.update(small[task], target, mask, cells[task])  # type: ignore[call-arg]
        else:
            state.update(large[task], target, mask)


def total_loss(model: nn.Module, objective: Objective, batches: Iterable[Batch], device: torch.device) -> float:
    """Return the weighted multitask loss of `model` on `batches`, as `evaluate` measures it."""
    return evaluate(model, objective, {}, batches, device)[0].value
