"""Cases of training and measuring: a step with masks, evaluation at full size, and reading samples."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from benchmarks.speed import released
from benchmarks.speed.measure import OURS, Case, Sides, numbers_differ
from benchmarks.speed.workloads import LARGE, SMALL, Workload, made_up, objective_of
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.pruning.masks import Masks
from mtlprune_bench.recipe import Recipe
from mtlprune_bench.seeds import derive
from mtlprune_bench.tasks import Batch
from mtlprune_bench.training.evaluate import evaluate
from mtlprune_bench.training.state import State, apply_masks, make_optimizer
from mtlprune_bench.training.train import Training, Watch, make_step

DENSITY = 0.1
STEPS = 3
"""Steps of each side before losses are compared, so that the optimizers' moments are not zero."""
SIZE = (480, 640)
CELLS = (61, 81)
"""The size of predictions for SIZE of the network of the DiSparse paper."""


def engine_step(model: nn.Module, work: Workload, recipe: Recipe, masks: Masks) -> Callable[[], dict[str, float]]:
    """Return what makes a step of the engine's training and returns its loss."""
    training = Training(
        model=model,
        objective=work.objective,
        recipe=recipe,
        batches=lambda step: itertools.repeat(work.batches[0]),
        select=None,
        folder=Path(),
        seed=0,
        checkpoint_seconds=math.inf,
        watch=Watch(lambda step, losses: None, lambda step, before, after: None),
    )
    apply_masks(model, masks)
    state = State(model, make_optimizer(model, recipe, None), dict(masks), None)

    def step() -> dict[str, float]:
        make_step(training, state, work.batches[0])
        state.step += 1
        losses = state.unseen.pop()
        # Looked at once the clock has stopped: the engine too waits for a GPU only now and then.
        return {"loss": work.objective.total(dict(zip(losses.tasks, losses.losses, strict=True)))}

    return step


def released_step(
    model: nn.Module, work: Workload, recipe: Recipe, masks: Masks
) -> Callable[[], dict[str, float]]:
    """Return what makes a step with weights that are a product with their mask, and Adam as it is by default."""
    for name, layer in released.convolutions(model).items():
        prune.custom_from_mask(layer, "weight", masks[f"{name}.weight"])
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    steps = itertools.count()

    def step() -> dict[str, float]:
        torch.manual_seed(derive(0, "dropout", next(steps)))
        return {"loss": released.train_step(model, optimizer, work.batches[0], work.total)}

    return step


def training(work: Workload, changes: Mapping[str, Any], device: torch.device) -> Sides:
    """Compare a training step with a tenth of the weights with a dense one, and with reparametrised weights."""
    work = dataclasses.replace(work, device=device)
    recipe: Recipe = dataclasses.replace(load_registry().get("datasets", "nyuv2").train, batch=work.batch)
    model = work.build()
    generator = torch.Generator(device).manual_seed(0)
    kept = {
        f"{name}.weight": torch.rand(layer.weight.shape, generator=generator, device=device) < DENSITY
        for name, layer in released.convolutions(model).items()
    }
    dense = {} if changes else {"dense": engine_step(copy.deepcopy(model), work, recipe, {})}
    run = {
        **dense,
        "reparametrised": released_step(copy.deepcopy(model), work, recipe, kept),
        OURS: engine_step(model, work, dataclasses.replace(recipe, **changes), kept),
    }
    for step in run.values():
        for _ in range(STEPS):
            step()

    # With fewer digits losses agree less.
    near = numbers_differ({}, 0.05 if changes else 0.01)
    return Sides(run, near, flops=3 * work.forward_flops(), other=("dense",), half="precision" in changes)


class Stored(nn.Module):
    """A network whose predictions are there already, so that only measuring takes time."""

    def __init__(self, outputs: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._outputs = dict(outputs)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the predictions."""
        return self._outputs


def photographs(count: int, size: tuple[int, int], device: torch.device) -> Iterator[Batch]:
    """Yield `count` batches of one image with labels in blocks, a tenth of them not valid."""
    for seed in range(count):
        whole = made_up(2, size, 1, device, seed)
        valid = torch.rand(1, *size, generator=torch.Generator().manual_seed(seed)).to(device) > 0.1
        yield Batch(whole.images, whole.targets, dict.fromkeys(whole.targets, valid))


def evaluation(images: int, size: tuple[int, int], device: torch.device) -> Sides:
    """Compare metrics of segmentation and normals under the released code's protocol, predictions at hand."""
    objective = objective_of(2)
    generator = torch.Generator().manual_seed(0)
    cells = tuple(round(side * cell / whole) for side, cell, whole in zip(size, CELLS, SIZE, strict=True))
    outputs = {
        task: torch.randn(1, channels, *cells, generator=generator).to(device)
        for task, channels in objective.channels().items()
    }
    batches = list(photographs(min(images, 4), size, device))
    chosen = {task: load_registry().metrics_of(task) for task in objective.tasks}

    def stream() -> Iterable[Batch]:
        return itertools.islice(itertools.cycle(batches), images)

    def theirs() -> dict[str, float]:
        kept = released.Evaluation(objective.labels["segmentation"].classes)
        for batch in stream():
            kept.add(outputs, batch)
        return kept.numbers()

    def ours() -> dict[str, float]:
        values = evaluate(Stored(outputs), objective, chosen, stream(), device)
        return {value.metric: value.value for value in values if value.task}

    pixels = images * size[0] * size[1]
    # Labels of both tasks and their masks are read once.
    return Sides(
        {"released": theirs, OURS: ours}, numbers_differ({"median_angle": 0.02}, 1e-3), moved=pixels * (8 + 12 + 2)
    )


def cases() -> list[Case]:
    """Return all cases of training and of measuring."""
    cpu = torch.device("cpu")
    fast = {"precision": "bf16", "memory_format": "channels_last"}

    def step(work: Workload, quick: bool = False) -> Case:
        return Case(
            name="training step",
            size=work.words(),
            prepare=partial(training, work, {}),
            needs=2 * work.needs(),
            targets={} if quick else {"dense": 1 / 1.05, "reparametrised": 1.1},
            quick=quick,
        )

    paper = Workload(LARGE, 2, 321, 16, cpu)
    return [
        step(Workload(SMALL, 2, 32, 4, cpu), quick=True),
        step(Workload(SMALL, 2, 64, 8, cpu)),
        step(Workload(LARGE, 2, 65, 2, cpu)),
        Case(
            name="training step, bf16 and channels last",
            size=paper.words(),
            prepare=partial(training, paper, fast),
            needs=60e9,
            targets={"reparametrised": 3.0},
            cuda=True,
        ),
        measuring(4, (120, 160), quick=True),
        measuring(8, SIZE),
        *(
            dataclasses.replace(measuring(images, SIZE), name="memory of evaluation", unit="MB", targets={})
            for images in (8, 40)
        ),
    ]


def measuring(images: int, size: tuple[int, int], quick: bool = False) -> Case:
    """Return the case of an evaluation of so many images."""
    return Case(
        name="evaluation",
        size=f"{images} images of {size[0]} x {size[1]}, 40 classes and normals",
        prepare=partial(evaluation, images, size),
        needs=1e9 + 300.0 * images * size[0] * size[1],
        targets={} if quick else {"released": 15.0},
        quick=quick,
    )
