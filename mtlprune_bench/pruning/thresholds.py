"""Soft thresholds: weights below them are zero, and they are trained with the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mtlprune_bench.errors import StoreError
from mtlprune_bench.pruning.components import Components
from mtlprune_bench.pruning.learned import AdaptiveWeights, LearnedMethod
from mtlprune_bench.pruning.masks import keep_top, kept_count
from mtlprune_bench.recipe import Recipe
from mtlprune_bench.tasks import Objective
from mtlprune_bench.tensors import NamedTensors


def groups(group_by: str, components: Components) -> dict[str, tuple[str, ...]]:
    """Return the names of the weights that share a threshold, by the threshold's name."""
    if group_by == "component":
        return components.by_name()
    if group_by == "layer":
        return {name: (name,) for name in components.users}
    return {"network": tuple(components.users)}


class _Soften(torch.autograd.Function):
    """sign(W) max(|W| - sigmoid(s), 0), written out because autograd would keep two more copies of W."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, s: Tensor) -> Tensor:
        softened = (weight.abs() - torch.sigmoid(s)).relu_().mul_(weight.sign())
        ctx.save_for_backward(softened, s)
        return softened

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        softened, s = ctx.saved_tensors
        # A difference of two floats is 0 only where they are equal, so this is |W| <= sigmoid(s).
        passed = gradients[0].masked_fill(softened == 0, 0.0)
        sigma = torch.sigmoid(s)
        return passed, -(sigma * (1 - sigma)) * (passed * softened.sign()).sum()


class SoftThreshold(nn.Module):
    """The parametrization W -> sign(W) max(|W| - sigmoid(s), 0), with one scalar `s` for all weights of a group.

    Of weights that are zero in it neither W nor s gets a gradient. In float32 sigmoid(s) is exactly 0 below
    s = -104, and the result equals W.
    """

    def __init__(self, s: nn.Parameter) -> None:
        super().__init__()
        self.s = s

    def forward(self, weight: Tensor) -> Tensor:
        """Return what the layer computes with instead of `weight`, of the same shape."""
        return _Soften.apply(weight, self.s)  # type: ignore[no-any-return]


class LossWeights:
    """The weights of the tasks' losses by AdaptiveWeights, on the losses' device and never waiting for it."""

    def __init__(self, settings: AdaptiveWeights, tasks: Sequence[str], steps: int, device: torch.device) -> None:
        self._settings, self._tasks = settings, tuple(tasks)
        self._begin = round(settings.begin * steps)
        length = max(1, round(settings.window * steps))
        # In float64, as in the released code, whose losses are Python's numbers.
        self._changes = torch.zeros(len(tasks), length, dtype=torch.float64, device=device)
        self._last = torch.zeros(len(tasks), dtype=torch.float64, device=device)
        self._weights = torch.ones(len(tasks), dtype=torch.float64, device=device)
        self._seen = 0

    @property
    def weights(self) -> dict[str, Tensor]:
        """Return each task's weight, a float64 scalar."""
        return dict(zip(self._tasks, self._weights, strict=True))

    def observe(self, losses: Mapping[str, Tensor], step: int) -> None:
        """Take up each task's loss at `step`, counted from 0."""
        if step >= self._begin:
            self._observe(torch.stack([losses[task].detach() for task in self._tasks]).double())

    def _observe(self, losses: Tensor) -> None:
        """Take up the losses [K] of a step, and renew the weights where the window was full before."""
        length = self._changes.shape[1]
        if self._seen:
            changes = (losses - self._last).abs()
            if self._settings.relative:
                # A loss of exactly 0, of a batch without a valid pixel, says nothing about change.
                changes = torch.where(losses == 0, 0.0, changes / losses.abs())
            # A ring: the newest change takes the place of the oldest.
            self._changes[:, self._seen % length] = changes
        if self._seen > length:
            means = self._changes.mean(1)
            # Where no loss changed at all there is no ratio of changes, and the weights stay.
            self._weights = torch.where(means.sum() > 0, len(means) * means / means.sum(), self._weights)
        self._last = losses
        self._seen += 1

    def state(self) -> dict[str, Tensor]:
        """Return copies of all that changes."""
        seen = torch.tensor(self._seen)
        kept = {"changes": self._changes, "last": self._last, "weights": self._weights, "seen": seen}
        return {name: tensor.clone() for name, tensor in kept.items()}

    def restore(self, tensors: NamedTensors) -> None:
        """Take up what `state` returned."""
        device = self._changes.device
        self._changes, self._last, self._weights = (
            tensors[name].to(device, copy=True) for name in ("changes", "last", "weights")
        )
        self._seen = int(tensors["seen"])


class Learner:
    """The thresholds of a model while it trains: what the training loop asks at every step.

    `groups` names the prunable weights that share a threshold, `target` is the sparsity asked for, in [0, 1).
    From here to `finish` the layers of `model` compute with softened weights; the trained ones are called
    `LAYER.parametrizations.weight.original`, and a group's `s` is the parameter of its first layer.
    """

    def __init__(
        self,
        model: nn.Module,
        method: LearnedMethod,
        groups: Mapping[str, Sequence[str]],
        objective: Objective,
        recipe: Recipe,
        target: float,
    ) -> None:
        self._model, self._method, self._objective, self._recipe = model, method, objective, recipe
        self._target = target
        group_of = {name: group for group, names in groups.items() for name in names}
        # In the order of the network, not of the groups, by which ties are broken.
        self._weights = {name: weight for name, weight in model.named_parameters() if name in group_of}
        self._thresholds = {
            group: nn.Parameter(self._weights[names[0]].detach().new_full((), method.s_init))
            for group, names in groups.items()
        }
        self._s = {name: self._thresholds[group_of[name]] for name in self._weights}
        self._total = sum(weight.numel() for weight in self._weights.values())
        self._places = self._parametrize()
        self._stopped = False
        self._loss_weights = None
        if method.weighting is not None:
            device = next(iter(self._thresholds.values())).device
            self._loss_weights = LossWeights(method.weighting, list(objective.tasks), recipe.steps, device)

    def _parametrize(self) -> list[tuple[nn.Module, str]]:
        """Soften every weight in each layer that has it, and return where."""
        names = {id(weight): name for name, weight in self._weights.items()}
        places = [
            (layer, attribute, names[id(weight)])
            for layer in self._model.modules()
            for attribute, weight in layer.named_parameters(recurse=False)
            if id(weight) in names
        ]
        for layer, attribute, name in places:
            parametrize.register_parametrization(layer, attribute, SoftThreshold(self._s[name]))
        return [(layer, attribute) for layer, attribute, _ in places]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the groups of parameters for Adam: all but the thresholds, then these.

        A group's "factor" is its learning rate as a multiple of the recipe's.
        """
        method, recipe = self._method, self._recipe
        thresholds = list(self._thresholds.values())
        known = {id(s) for s in thresholds}
        rest = [parameter for parameter in self._model.parameters() if id(parameter) not in known]
        decay = recipe.weight_decay if method.threshold_weight_decay is None else method.threshold_weight_decay
        factor = 1.0
        if method.travel is not None:
            factor = method.travel / math.fsum(recipe.lr_at(step) for step in range(recipe.steps))
        return [
            {"params": rest, "weight_decay": recipe.weight_decay, "eps": method.eps, "factor": 1.0},
            {"params": thresholds, "weight_decay": decay, "eps": method.eps, "factor": factor},
        ]

    def observe(self, losses: Mapping[str, Tensor], step: int) -> None:
        """Take up the losses of `step`, counted from 0, by which adaptive weights change; called once a step."""
        if self._loss_weights is not None:
            self._loss_weights.observe(losses, step)

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted multitask loss, a scalar.

        No gradient flows through adaptive weights: they are constants in it.
        """
        if self._loss_weights is None:
            return self._objective.total(losses)
        weights = self._loss_weights.weights
        return self._objective.total({task: loss * weights[task].to(loss) for task, loss in losses.items()})

    def after_backward(self) -> None:
        """Take the thresholds' gradients away where the sparsity is reached, so that Adam passes them over."""
        if not (self._stopped and self._method.latch):
            # The one wait for an accelerator in a step: Adam must know on the host what it passes over.
            self._stopped = self.reached
        if self._stopped:
            for s in self._thresholds.values():
                s.grad = None

    @property
    def reached(self) -> bool:
        """Return whether the weights have the sparsity asked for, or more."""
        return bool(self.sparsity() >= self._target)

    def sparsity(self) -> Tensor:
        """Return the fraction of prunable weights that are zero once softened, a float64 scalar on the device."""
        return self._zeros().sum().double() / self._total

    def _zeros(self) -> Tensor:
        """Return how many weights are zero once softened, int64 [layers], on the device."""
        with torch.no_grad():
            zeros = [
                (weight.abs() <= torch.sigmoid(self._s[name])).sum() for name, weight in self._weights.items()
            ]
            return torch.stack(zeros)

    def removed(self) -> dict[str, tuple[int, int]]:
        """Return how many weights of each layer are zero once softened, and how many it has."""
        zeros = zip(self._zeros().tolist(), self._weights.items(), strict=True)
        return {name: (count, weight.numel()) for count, (name, weight) in zeros}

    def numbers(self) -> dict[str, float]:
        """Return the threshold of each group, in (0, 1), and the weight of each task's loss, where they adapt."""
        thresholds = {
            f"threshold/{group}": float(torch.sigmoid(s.detach())) for group, s in self._thresholds.items()
        }
        weights = {} if self._loss_weights is None else self._loss_weights.weights
        return thresholds | {f"task-weight/{task}": float(weight) for task, weight in weights.items()}

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold beside parameters and Adam's state; copies."""
        weights = {} if self._loss_weights is None else self._loss_weights.state()
        return {"stopped": torch.tensor(self._stopped), **weights}

    def restore(self, tensors: NamedTensors) -> None:
        """Take up what `state` returned. Raises StoreError where it belongs to another method or recipe."""
        own = self.state()
        if own.keys() != tensors.keys() or any(own[name].shape != tensors[name].shape for name in own):
            raise StoreError("The stored loss weights belong to another run. Move the folder away and run again.")
        self._stopped = bool(tensors["stopped"])
        if self._loss_weights is not None:
            self._loss_weights.restore(tensors)

    def finish(self) -> dict[str, Tensor]:
        """Leave the softened weights in the model, without thresholds, and return their masks by name.

        The masks are true where a softened weight is not zero. With `exact_finalize` as many are true as the
        target keeps, those of the highest |W| - sigmoid(s), ties by index: of more that are not zero the rest
        become so, and where they are too few the next ones are kept in the mask, with value 0.
        """
        with torch.no_grad():
            margins = {name: weight.abs() - torch.sigmoid(self._s[name]) for name, weight in self._weights.items()}
            masks = {name: margin > 0 for name, margin in margins.items()}
            if self._method.exact_finalize:
                masks = keep_top(margins, kept_count(self._total, self._target))
            for layer, attribute in self._places:
                parametrize.remove_parametrizations(layer, attribute, leave_parametrized=False)
            for name, weight in self._weights.items():
                softened = SoftThreshold(self._s[name])(weight)
                # Filled, because a negative weight's product would be a negative zero.
                weight.copy_(softened.masked_fill_(~masks[name] | (margins[name] <= 0), 0.0))
        return masks
