"""The state of a training: weights, masks, moments, step, and the checkpoint that holds them all."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mtlprune_bench.errors import StoreError
from mtlprune_bench.processes import ALONE, Processes
from mtlprune_bench.pruning.masks import Masks
from mtlprune_bench.recipe import Recipe
from mtlprune_bench.tensors import NamedTensors
from mtlprune_bench.training.checkpoint import load_tensors, save_tensors
from mtlprune_bench.training.numerics import Unseen

CHECKPOINT = "checkpoint.safetensors"
BEST = "best.safetensors"
MOMENTS = {"exp_avg", "exp_avg_sq"}


class GradientMask:
    """Zeroes the gradients of removed weights, all tensors in one fused call."""

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        parameters = dict(model.named_parameters())
        self._weights = [parameters[name] for name in masks]
        # On a CPU a boolean factor is slower than a float; on a GPU it is a quarter of the traffic.
        self._factors = [
            mask.to(weight.device, torch.bool if weight.is_cuda else weight.dtype)
            for weight, mask in zip(self._weights, masks.values(), strict=True)
        ]

    def __call__(self) -> None:
        """Multiply each masked weight's gradient by its mask; weights without a gradient are passed over."""
        pairs = [
            (weight.grad, factor)
            for weight, factor in zip(self._weights, self._factors, strict=True)
            if weight.grad is not None
        ]
        if pairs:
            torch._foreach_mul_([pair[0] for pair in pairs], [pair[1] for pair in pairs])


def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set the removed weights of `model` to zero, in place."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            # Filled, not multiplied: products would keep the sign of zero, and of what is not finite more.
            parameters[name].masked_fill_(~mask.to(parameters[name].device), 0.0)


class Learner(Protocol):
    """What a method whose masks are trained adds to the training loop."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's groups; "factor" in each is a multiple of the recipe's learning rate."""
        ...

    def observe(self, losses: Mapping[str, Tensor], step: int) -> None:
        """Take up the tasks' `losses` of the whole batch of `step`; called once a step."""
        ...

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the loss to train on, a scalar, of the tasks' `losses`."""
        ...

    def after_backward(self) -> None:
        """Change gradients before the optimizer uses them."""
        ...

    @property
    def reached(self) -> bool:
        """Return whether the weights have the sparsity asked for, or more."""
        ...

    def removed(self) -> dict[str, tuple[int, int]]:
        """Return how many weights of each layer are zero now, and how many it has."""
        ...

    def numbers(self) -> dict[str, float]:
        """Return what else is trained, or follows from it, by name."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds of it, beside the model's parameters."""
        ...

    def restore(self, tensors: NamedTensors) -> None:
        """Take up what `state` returned."""
        ...

    def finish(self) -> dict[str, Tensor]:
        """Leave the pruned weights in the model and return their masks."""
        ...


@dataclass
class State:
    """What changes while training, all of which a checkpoint holds; `step` is the next one to make.

    `saved` is the step of the checkpoint that is there, None where there is none.
    """

    model: nn.Module
    optimizer: torch.optim.Adam
    masks: dict[str, Tensor]
    learner: Learner | None
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))
    processes: Processes = ALONE
    step: int = 0
    best: float = math.inf
    seconds: float = 0.0
    unseen: list[Unseen] = field(default_factory=list)
    saved: int | None = None

    def __post_init__(self) -> None:
        self._since = time.monotonic()
        self.set_masks(self.masks)

    def set_masks(self, masks: Masks) -> None:
        """Make `masks` those of the training from now on."""
        self.masks = dict(masks)
        self.gradient_mask = GradientMask(self.model, masks)

    def spent(self) -> float:
        """Return the seconds of this training so far, in all sessions."""
        return self.seconds + time.monotonic() - self._since

    def contents(self) -> dict[str, Tensor]:
        """Return the weights, buffers and masks by name."""
        return _named("model", weights_of(self.model)) | _named("mask", self.masks)

    def save(self, folder: Path) -> None:
        """Write a checkpoint: weights, buffers, moments, masks, step."""
        tensors = self.contents()
        for name, parameter in self.model.named_parameters():
            tensors |= _named(f"adam.{name}", self.optimizer.state.get(parameter, {}))
        if self.learner is not None:
            tensors |= _named("learner", self.learner.state())
        facts = {"step": self.step, "best": self.best, "seconds": self.spent(), "scaler": self.scaler.state_dict()}
        save_tensors(folder / CHECKPOINT, tensors, facts)
        self.saved = self.step

    def resume(self, folder: Path) -> None:
        """Take up the folder's checkpoint, if it has one."""
        loaded = self.processes.from_first(lambda: load_tensors(folder / CHECKPOINT))
        if loaded is None:
            return
        tensors, facts = loaded
        load_weights(self.model, _under("model", tensors))
        self.step, self.best, self.seconds = facts["step"], facts["best"], facts["seconds"]
        self.saved = self.step
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(facts["scaler"])
        devices = {name: parameter.device for name, parameter in self.model.named_parameters()}
        self.set_masks({name: mask.to(devices[name]) for name, mask in _under("mask", tensors).items()})
        for name, parameter in self.model.named_parameters():
            if moments := _under(f"adam.{name}", tensors):
                self.optimizer.state[parameter] = {
                    key: moment.to(parameter.device) for key, moment in moments.items()
                }
        if self.learner is not None:
            self.learner.restore(_under("learner", tensors))

    def take_best(self, folder: Path) -> None:
        """Put the selected weights and masks in the place of the last ones. Raises StoreError if they are gone."""
        loaded = self.processes.from_first(lambda: load_tensors(folder / BEST))
        if loaded is None:
            if self.processes.first:
                (folder / CHECKPOINT).unlink(missing_ok=True)
            raise StoreError(f"The selected weights in {folder} are gone. Run again to train anew.")
        load_weights(self.model, _under("model", loaded[0]))
        self.masks = _under("mask", loaded[0])


def remove_checkpoints(folder: Path) -> None:
    """Remove what only a training that goes on needs."""
    for name in (CHECKPOINT, BEST):
        (folder / name).unlink(missing_ok=True)


def make_optimizer(model: nn.Module, recipe: Recipe, learner: Learner | None) -> torch.optim.Adam:
    """Return the optimizer of a training; fused, as the default one is slow on zeros."""
    groups = learner.parameter_groups() if learner else [{"params": list(model.parameters())}]
    return torch.optim.Adam(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)


def clear_moments(state: State, where: Masks) -> None:
    """Set the optimizer's moments to zero `where` a mask is true."""
    parameters = dict(state.model.named_parameters())
    for name, chosen in where.items():
        moments = state.optimizer.state.get(parameters[name], {})
        for moment in MOMENTS & moments.keys():
            moments[moment].masked_fill_(chosen.to(parameters[name].device), 0.0)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of `model` by name, each once; not copies."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def load_weights(model: nn.Module, tensors: NamedTensors) -> None:
    """Copy `tensors`, as saved from `weights_of`, into `model`. Raises StoreError where they do not fit."""
    own = weights_of(model)
    if own.keys() != tensors.keys() or any(own[name].shape != tensors[name].shape for name in own):
        raise StoreError("The stored weights belong to another model. Move the folder away and run again.")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _named(group: str, tensors: NamedTensors) -> dict[str, Tensor]:
    return {f"{group}.{name}": tensor for name, tensor in tensors.items()}


def _under(group: str, tensors: NamedTensors) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{group}."): tensor for name, tensor in tensors.items() if name.startswith(f"{group}.")
    }
