"""Cases of pruning: scoring, masks, an exact sparsity, several sparsities, and updates while training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import prune

from benchmarks.speed import released
from benchmarks.speed.measure import OURS, Case, Sides, masks_differ
from benchmarks.speed.workloads import LARGE, SMALL, Workload
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.pruning.masks import kept_count, sparsity
from mtlprune_bench.pruning.method import JOINT, Method
from mtlprune_bench.pruning.prune import make_masks
from mtlprune_bench.pruning.regrow import regrow_masks
from mtlprune_bench.pruning.schedules import Update
from mtlprune_bench.pruning.scorers import Scores, gradient, magnitude, saliency
from mtlprune_bench.seeds import derive
from mtlprune_bench.training.state import State, apply_masks, clear_moments, make_optimizer

KEEP = 0.08
"""The fraction that each task keeps of its weights in the released code for NYU-v2 at a sparsity of 0.9."""
FRACTIONS = (0.08, 0.257, 0.46, 0.675)
"""Those for sparsities of 0.9, 0.7, 0.5 and 0.3."""
REGROW = 0.5
PARTS = 2
"""Pieces of a batch in the released code's updates."""
ROUNDING = 1e-6
"""The share of weights whose order may differ where several batches are added up, in another order."""

THEIRS = "released"


def static(batches: int, init: str = "own") -> Method:
    """Return DiSparse static with scores from so many batches."""
    method: Method = load_registry().get("methods", "disparse-static")
    return dataclasses.replace(method, score=saliency(batches=batches, init=init))


def released_scores(
    work: Workload, model: Any, batches: int, redrawn: bool = False
) -> dict[str, dict[str, Tensor]]:
    """Return the scores of the straightforward implementation, whose generators begin as the engine's do."""
    torch.manual_seed(derive(0, "dropout"))
    redraw = torch.Generator().manual_seed(derive(0, "init")) if redrawn else None
    chosen = [work.batches[number % len(work.batches)] for number in range(batches)]
    return released.task_scores(model, chosen, list(work.objective.tasks), work.loss, redraw)


def by_weight(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return masks by the names of weights, of masks by layer."""
    return {f"{name}.weight": mask for name, mask in masks.items()}


def by_layer(scores: Scores) -> dict[str, dict[str, Tensor]]:
    """Return scores by the names of layers, of scores by weight."""
    return {
        voter: {name.removesuffix(".weight"): score for name, score in own.items()}
        for voter, own in scores.items()
    }


def scores_differ(theirs: Mapping[str, Mapping[str, Tensor]], ours: Scores) -> str:
    """Return where scores differ by more than rounding."""
    found = by_layer(ours)
    for task, own in theirs.items():
        if own.keys() != found[task].keys():
            return f"scores of {task} are of other layers"
        for name, score in own.items():
            error = float((score - found[task][name]).norm() / score.norm().clamp(min=1e-30))
            if not error < 1e-4:
                return f"scores of {task} for {name} differ by {error:.2g} of their norm"
    return ""


def scoring(work: Workload, batches: int, device: torch.device) -> Sides:
    """Compare scores by gradients, a forward pass for each task with one for all."""
    work = dataclasses.replace(work, device=device)
    model, method = work.build(), static(batches)
    scoring = work.scoring(model, method)
    return Sides(
        {THEIRS: lambda: released_scores(work, model, batches), OURS: lambda: method.score(scoring)},
        scores_differ,
        flops=batches * work.flops(),
    )


def reached(scores: Scores, keep: float) -> float:
    """Return the sparsity that a fixed fraction comes to."""
    return sparsity({name: mask.bool() for name, mask in released.task_masks(by_layer(scores), keep).items()})


def masks(work: Workload, device: torch.device) -> Sides:
    """Compare thresholds and masks from given scores; both networks are given their masks."""
    work = dataclasses.replace(work, device=device)
    model, other, method = work.build(), work.build(), static(1)
    scoring = work.scoring(model, method)
    scores = method.score(scoring)
    target = reached(scores, KEEP)

    def theirs() -> dict[str, Tensor]:
        released.bare(other)
        made = released.task_masks(by_layer(scores), KEEP)
        released.install(other, made)
        return by_weight(made)

    def ours() -> dict[str, Tensor]:
        made = make_masks(method, scoring, target, scores=scores)
        apply_masks(model, made)
        return made

    sizes = [score.numel() for own in scores.values() for score in own.values()]
    # Numbers of weights to keep are rounded for each task there, and once here.
    return Sides({THEIRS: theirs, OURS: ours}, masks_differ(2 * work.tasks), moved=4 * sum(sizes))


def joint(work: Workload, device: torch.device) -> Sides:
    """Compare the masks of one voter, by magnitude, with those of torch.nn.utils.prune."""
    work = dataclasses.replace(work, device=device)
    model, other = work.build(), work.build()
    method = dataclasses.replace(static(1), score=magnitude(), scope=JOINT, arbiter=None)
    scoring = work.scoring(model, method)
    total = sum(weight.numel() for weight in scoring.weights.values())

    def theirs() -> dict[str, Tensor]:
        released.bare(other)
        layers = released.convolutions(other)
        chosen = [(layer, "weight") for layer in layers.values()]
        prune.global_unstructured(
            chosen, pruning_method=prune.L1Unstructured, amount=total - kept_count(total, 1 - KEEP)
        )
        return {f"{name}.weight": layer.weight_mask for name, layer in layers.items()}

    return Sides(
        {"torch": theirs, OURS: lambda: make_masks(method, scoring, 1 - KEEP)}, masks_differ(), moved=4 * total
    )


def exact(work: Workload, batches: int, device: torch.device) -> Sides:
    """Compare scoring and masks of a sparsity that has to be met: to 0.0001 there, to the weight here."""
    work = dataclasses.replace(work, device=device)
    model, method = work.build(), static(batches)
    scoring = work.scoring(model, method)

    def theirs() -> dict[str, Tensor]:
        return by_weight(released.exact_masks(lambda: released_scores(work, model, batches), 0.1, 1e-4)[0])

    return Sides(
        {THEIRS: theirs, OURS: lambda: make_masks(method, scoring, 0.9)},
        masks_differ(round(2e-4 * work.weights)),
        flops=batches * work.flops(),
    )


def several(work: Workload, batches: int, device: torch.device) -> Sides:
    """Compare scoring and masks for four sparsities."""
    work = dataclasses.replace(work, device=device)
    model, method = work.build(), static(batches)
    scoring = work.scoring(model, method)
    scores = method.score(scoring)
    targets = [reached(scores, keep) for keep in FRACTIONS]
    del scores

    def theirs() -> dict[str, Tensor]:
        made = [by_weight(released.task_masks(released_scores(work, model, batches), keep)) for keep in FRACTIONS]
        return {f"{number}.{name}": mask for number, one in enumerate(made) for name, mask in one.items()}

    def ours() -> dict[str, Tensor]:
        kept = method.score(scoring)
        made = [make_masks(method, scoring, target, scores=kept) for target in targets]
        return {f"{number}.{name}": mask for number, one in enumerate(made) for name, mask in one.items()}

    allowed = 8 * work.tasks + round(len(FRACTIONS) * ROUNDING * work.weights)
    return Sides({THEIRS: theirs, OURS: ours}, masks_differ(allowed), flops=batches * work.flops())


def whole(work: Workload, batches: int, device: torch.device) -> Sides:
    """Compare all of pruning before training: weights drawn anew, scores, masks."""
    work = dataclasses.replace(work, device=device)
    model, method = work.build(), static(batches, "xavier")
    scoring = work.scoring(model, method)
    target = reached(method.score(scoring), KEEP)

    def theirs() -> dict[str, Tensor]:
        released.bare(model)
        made = released.task_masks(released_scores(work, model, batches, redrawn=True), KEEP)
        released.install(model, made)
        released.bare(model)
        return by_weight(made)

    allowed = 2 * work.tasks + round(ROUNDING * work.weights)
    return Sides(
        {THEIRS: theirs, OURS: lambda: make_masks(method, scoring, target)},
        masks_differ(allowed),
        flops=batches * work.flops(),
    )


def update(work: Workload, device: torch.device) -> Sides:
    """Compare an update of masks while training: weights dropped, and grown by the gradients of a batch."""
    work = dataclasses.replace(work, device=device)
    model, other = work.build(), work.build()
    method: Method = load_registry().get("methods", "disparse-dynamic")
    method = dataclasses.replace(method, grow=gradient(batches=0, parts=PARTS))
    scoring = work.scoring(model, method)
    current = make_masks(method, scoring, 0.9)
    for network in (model, other):
        apply_masks(network, current)
    shapes = {name: tuple(weight.shape) for name, weight in scoring.weights.items()}
    groups = method.allocation.groups(shapes, kept_count(work.weights, 0.9))
    numbers = {name.removesuffix(".weight"): group.kept for group in groups for name in group.names}
    optimizer = make_optimizer(model, load_registry().get("datasets", "nyuv2").train, None)
    for parameter in model.parameters():
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(1.0, device=device), **moments}
    state = State(model, optimizer, current, None)
    own = {name: mask.int() for name, mask in by_layer({"": current})[""].items()}

    def theirs(highest: Callable[[Tensor, int], Tensor] = released.highest) -> dict[str, Tensor]:
        torch.manual_seed(derive(0, "dropout"))
        batch, tasks = work.batches[0], list(work.objective.tasks)
        return by_weight(released.update(other, own, numbers, REGROW, batch, PARTS, tasks, work.loss, highest)[2])

    def ours() -> dict[str, Tensor]:
        regrown = regrow_masks(method, scoring, Update(step=1, sparsity=0.9, regrow=REGROW), current)
        state.set_masks(regrown.masks)
        apply_masks(model, state.masks)
        clear_moments(state, {name: ~mask for name, mask in state.masks.items()})
        apply_masks(model, {name: ~chosen for name, chosen in regrown.grown.items()})
        clear_moments(state, regrown.grown)
        return regrown.masks

    return Sides(
        {THEIRS: theirs, OURS: ours},
        masks_differ(round(ROUNDING * work.weights)),
        flops=work.flops(),
        # Many gradients of small images are equal, as they are 0, and the released code takes any of them.
        check={THEIRS: partial(theirs, released.first_highest)},
    )


def cases() -> list[Case]:
    """Return all cases of pruning."""
    cpu = torch.device("cpu")
    small = {tasks: Workload(SMALL, tasks, 64, 8, cpu) for tasks in (2, 5)}
    large = {tasks: Workload(LARGE, tasks, 65, 2, cpu) for tasks in (2, 5)}
    busy = {tasks: Workload(LARGE, tasks, 65, 8, cpu) for tasks in (2, 5)}
    tiny = Workload(SMALL, 2, 32, 4, cpu)

    def case(name: str, make: Any, work: Workload, target: float, *more: Any, **facts: Any) -> Case:
        other = facts.pop("other", THEIRS)
        facts = {"targets": {other: target} if target else {}, "needs": work.needs(), **facts}
        return Case(name=name, size=work.words(), prepare=partial(make, work, *more), **facts)

    return [
        case("scoring", scoring, tiny, 0, 2, quick=True),
        case("scoring", scoring, small[2], 1.2, 4),
        case("scoring", scoring, small[5], 1.5, 4),
        case("scoring", scoring, large[2], 1.4, 2),
        case("scoring", scoring, large[5], 2.0, 2),
        case("masks", masks, tiny, 0, quick=True),
        case("masks", masks, small[2], 5),
        case("masks", masks, large[2], 10, limit=2.0),
        case("masks", masks, large[5], 10),
        case("masks of one voter", joint, tiny, 0, other="torch", quick=True),
        case("masks of one voter", joint, large[2], 1, other="torch"),
        case("exact sparsity", exact, small[2], 4, 1),
        case("four sparsities", several, small[2], 4, 10),
        case("update", update, tiny, 0, quick=True),
        case("update", update, busy[2], 1.8),
        case("update", update, busy[5], 2.3),
        case("memory of pruning", whole, large[2], 3, 1, unit="MB"),
        case("memory of pruning", whole, large[5], 3, 1, unit="MB"),
        case("memory of an update", update, busy[2], 3, unit="MB"),
        case("memory of an update", update, busy[5], 3, unit="MB"),
    ]
