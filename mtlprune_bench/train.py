"""Training: one loop for every method, whose masks and state survive being killed at any step."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from mtlprune_bench.checkpoint import load_tensors, save_tensors
from mtlprune_bench.errors import DivergedError, StoreError
from mtlprune_bench.masks import Masks
from mtlprune_bench.recipe import Recipe
from mtlprune_bench.schedules import Update
from mtlprune_bench.seeds import derive
from mtlprune_bench.store import append_history
from mtlprune_bench.tasks import Batch, Objective
from mtlprune_bench.tensors import NamedTensors

FLUSH_EVERY = 10
"""Steps between two looks at the losses on an accelerator, where looking waits for it."""

CHECKPOINT = "checkpoint.safetensors"
BEST = "best.safetensors"
HISTORY = "history.jsonl"
MOMENTS = {"exp_avg", "exp_avg_sq"}


@dataclass(frozen=True)
class Watch:
    """What the loop tells while it runs: the losses of each step, and masks before and after an update."""

    step_finished: Callable[[int, Mapping[str, float]], None]
    masks_updated: Callable[[int, Masks, Masks], None]


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training, from a model's present weights to the end of its recipe.

    `plan` holds the updates to make on the way, `update(step, sparsity, masks)` makes the masks of one.
    `batches(step)` gives the training batches from that step on. `select(step)` is the loss by which the best
    weights are chosen, None where the last ones stand. All files lie in `folder`.
    """

    model: nn.Module
    objective: Objective
    recipe: Recipe
    batches: Callable[[int], Iterable[Batch]]
    plan: tuple[Update, ...]
    update: Callable[[int, float, Masks], dict[str, Tensor]]
    select: Callable[[], float] | None
    folder: Path
    seed: int
    checkpoint_seconds: float
    watch: Watch


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


@dataclass
class State:
    """What changes while training, all of which a checkpoint holds; `step` is the next one to make."""

    optimizer: torch.optim.Adam
    masks: dict[str, Tensor]
    gradient_mask: GradientMask
    step: int = 0
    best: float = math.inf
    unseen: list[tuple[int, tuple[str, ...], Tensor]] = field(default_factory=list)


def train(training: Training, masks: Masks) -> dict[str, Tensor]:
    """Train the model under `masks` (empty: dense) and return the masks at the end.

    Continues from the folder's checkpoint where there is one; on a CPU the result is the same to the bit.
    The model is left with the weights that the protocol selects. Raises DivergedError at a loss that is not
    finite, and StoreError where the folder cannot be written.
    """
    model, recipe = training.model, training.recipe
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    state = State(optimizer, dict(masks), GradientMask(model, masks))
    _resume(training, state)
    apply_masks(model, state.masks)
    updates = {update.step: update.sparsity for update in training.plan}
    saved = time.monotonic()
    with torch.random.fork_rng(devices=sorted({p.device.index for p in model.parameters() if p.is_cuda})):
        for batch in itertools.islice(training.batches(state.step), recipe.steps - state.step):
            if state.step in updates:
                _update(training, state, updates[state.step])
            _step(training, state, batch)
            state.step += 1
            _select(training, state)
            _look(training, state)
            if time.monotonic() - saved >= training.checkpoint_seconds and not state.unseen:
                _save(training, state)
                saved = time.monotonic()
    return _finish(training, state)


def _step(training: Training, state: State, batch: Batch) -> None:
    """Make one optimizer step; removed weights get no gradient, and with zero moments they stay zero."""
    # Dropout draws from torch's generator: seeded by the step, it is the same after a resume.
    torch.manual_seed(derive(training.seed, "dropout", state.step))
    for group in state.optimizer.param_groups:
        group["lr"] = training.recipe.lr_at(state.step)
    training.model.train()
    losses = training.objective.losses(training.model(batch.images), batch)
    state.optimizer.zero_grad(set_to_none=True)
    training.objective.total(losses).backward()  # type: ignore[no-untyped-call]
    state.gradient_mask()
    state.optimizer.step()
    state.unseen.append((state.step, tuple(losses), torch.stack(list(losses.values())).detach()))


def _update(training: Training, state: State, sparsity: float) -> None:
    """Make the masks of an update; the moments of removed weights become zero with the weights."""
    before = state.masks
    state.masks = training.update(state.step, sparsity, before)
    state.gradient_mask = GradientMask(training.model, state.masks)
    apply_masks(training.model, state.masks)
    parameters = dict(training.model.named_parameters())
    for name, mask in state.masks.items():
        moments = state.optimizer.state.get(parameters[name], {})
        for moment in MOMENTS & moments.keys():
            moments[moment].masked_fill_(~mask.to(parameters[name].device), 0.0)
    training.watch.masks_updated(state.step, before, state.masks)


def _look(training: Training, state: State) -> None:
    """Write down the losses not yet seen and check them; on a GPU only now and then, as looking waits for it."""
    pause = FLUSH_EVERY if state.unseen[0][2].is_cuda else 1
    if state.step % pause and state.step < training.recipe.steps:
        return
    values = torch.stack([losses for _, _, losses in state.unseen]).tolist()
    steps = [
        (step, dict(zip(tasks, row, strict=True)))
        for (step, tasks, _), row in zip(state.unseen, values, strict=True)
    ]
    state.unseen.clear()
    append_history(training.folder / HISTORY, [{"step": step, "losses": losses} for step, losses in steps])
    for step, losses in steps:
        for task, loss in losses.items():
            if not math.isfinite(loss):
                raise DivergedError(
                    f"The loss of task '{task}' is {loss} at step {step}. Lower train.lr, or look at the data."
                )
        training.watch.step_finished(step, losses)


def _select(training: Training, state: State) -> None:
    """Keep the weights if the protocol selects by an evaluation, one is due, and it is the best so far."""
    if training.select is None or state.step % training.recipe.select_every:
        return
    loss = training.select()
    if loss < state.best:
        state.best = loss
        save_tensors(training.folder / BEST, _contents(training, state))


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


def _save(training: Training, state: State) -> None:
    """Write a checkpoint: weights, buffers, moments, masks, step."""
    tensors = _contents(training, state)
    for name, parameter in training.model.named_parameters():
        tensors |= _named(f"adam.{name}", state.optimizer.state.get(parameter, {}))
    save_tensors(training.folder / CHECKPOINT, tensors, {"step": state.step, "best": state.best})


def _resume(training: Training, state: State) -> None:
    """Take up the folder's checkpoint, if it has one."""
    loaded = load_tensors(training.folder / CHECKPOINT)
    if loaded is None:
        return
    tensors, facts = loaded
    load_weights(training.model, _under("model", tensors))
    state.step, state.best = facts["step"], facts["best"]
    devices = {name: parameter.device for name, parameter in training.model.named_parameters()}
    state.masks = {name: mask.to(devices[name]) for name, mask in _under("mask", tensors).items()}
    state.gradient_mask = GradientMask(training.model, state.masks)
    for name, parameter in training.model.named_parameters():
        if moments := _under(f"adam.{name}", tensors):
            state.optimizer.state[parameter] = {
                key: moment.to(parameter.device) for key, moment in moments.items()
            }


def _finish(training: Training, state: State) -> dict[str, Tensor]:
    """Put the selected weights into the model and return their masks; the last ones where none was selected."""
    if training.select is None or not math.isfinite(state.best):
        return state.masks
    loaded = load_tensors(training.folder / BEST)
    if loaded is None:
        (training.folder / CHECKPOINT).unlink(missing_ok=True)
        raise StoreError(f"The selected weights in {training.folder} are gone. Run again to train anew.")
    load_weights(training.model, _under("model", loaded[0]))
    return _under("mask", loaded[0])


def _contents(training: Training, state: State) -> dict[str, Tensor]:
    """Return the weights, buffers and masks by name."""
    return _named("model", weights_of(training.model)) | _named("mask", state.masks)


def _named(group: str, tensors: NamedTensors) -> dict[str, Tensor]:
    return {f"{group}.{name}": tensor for name, tensor in tensors.items()}


def _under(group: str, tensors: NamedTensors) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{group}."): tensor for name, tensor in tensors.items() if name.startswith(f"{group}.")
    }
