"""Numerics: a training stops where a number is no longer finite, and says where; what is empty is named."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtlprune_bench.errors import DivergedError
from mtlprune_bench.pruning.components import Components
from mtlprune_bench.pruning.masks import Masks

NAMED = 5
"""The most layers whose names are written out."""


@dataclass(frozen=True)
class Origin:
    """What a step's numbers come from: the training images of its batch, and the tasks that use a weight."""

    images: Callable[[int], Sequence[int]] = lambda step: ()
    users: Callable[[str], Sequence[str]] = lambda name: ()


@dataclass(frozen=True)
class Unseen:
    """An optimizer step whose numbers have not been looked at, as on an accelerator looking waits for it.

    `losses` [T] are those of `tasks`; `norms` [W] of the gradients of the parameters `names`, one number each.
    """

    step: int
    tasks: tuple[str, ...]
    losses: Tensor
    names: tuple[str, ...]
    norms: Tensor


def gradient_norms(model: nn.Module) -> tuple[tuple[str, ...], Tensor]:
    """Return the names of the parameters that have a gradient, and the norm of each [W]; waits for no device."""
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return tuple(found), _norms(list(found.values()))


def _norms(tensors: list[Tensor]) -> Tensor:
    """Return the norms of `tensors` [W]; one is finite only where all numbers of its tensor are."""
    return torch.stack(torch._foreach_norm(tensors)) if tensors else torch.zeros(0)


def look(unseen: Sequence[Unseen]) -> list[tuple[Unseen, dict[str, float], float]]:
    """Return each step with its tasks' losses and the sum of its gradients' norms, as numbers."""
    losses = torch.stack([each.losses for each in unseen]).tolist()
    norms = torch.stack([each.norms.sum() for each in unseen]).tolist()
    return [
        (each, dict(zip(each.tasks, row, strict=True)), norm)
        for each, row, norm in zip(unseen, losses, norms, strict=True)
    ]


def check_step(seen: Unseen, losses: Mapping[str, float], norm: float, origin: Origin, kept: str) -> None:
    """Raise DivergedError where a loss or a gradient of a step is not finite; `kept` says what is left to go on.

    It names the task, or the weight and the tasks that use it, the step and the training images of its batch.
    """
    bad = {task: loss for task, loss in losses.items() if not math.isfinite(loss)}
    if bad:
        task, loss = next(iter(bad.items()))
        what = f"The loss of task '{task}' is {loss}"
    elif not math.isfinite(norm):
        name, size = next(
            (each for each in zip(seen.names, seen.norms.tolist(), strict=True) if not math.isfinite(each[1])),
            ("all weights together", norm),
        )
        users = " and ".join(f"'{task}'" for task in origin.users(name))
        used = f", which is used for {users}," if users else ""
        what = f"The gradient of '{name}'{used} has norm {size}"
    else:
        return
    images = ", ".join(map(str, origin.images(seen.step)))
    batch = f" with the training images {images}" if images else ""
    raise DivergedError(f"{what} at step {seen.step}{batch}. Lower train.lr, or look at the data.{kept}")


def check_weights(model: nn.Module, step: int) -> None:
    """Raise DivergedError where a parameter is not finite after `step` steps: no checkpoint may hold it."""
    parameters = {name: weight.detach() for name, weight in model.named_parameters()}
    for name, norm in zip(parameters, _norms(list(parameters.values())).tolist(), strict=True):
        if not math.isfinite(norm):
            raise DivergedError(f"The norm of '{name}' is {norm} after {step} steps. Lower train.lr.")


def emptied(masks: Masks, components: Components) -> Iterator[str]:
    """Yield a sentence for each component that `masks` leave no weight of, and one for single layers elsewhere."""
    empty = {name for name, mask in masks.items() if not bool(mask.any())}
    for component, names in components.by_name().items():
        if names and empty.issuperset(names):
            empty.difference_update(names)
            own = f"what '{component}' alone uses" if component in components.tasks else f"component '{component}'"
            yield f"No weight is left of {own}: what is predicted by it no longer depends on the image."
    if empty:
        words = ", ".join(sorted(empty)[:NAMED]) + (
            f" and {len(empty) - NAMED} more" if len(empty) > NAMED else ""
        )
        yield f"No weight is left in {words}."
