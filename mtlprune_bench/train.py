"""Training: one loop for every method, whose masks and state survive being killed at any step."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtlprune_bench.checkpoint import save_tensors
from mtlprune_bench.errors import DivergedError
from mtlprune_bench.masks import Masks
from mtlprune_bench.recipe import Recipe
from mtlprune_bench.schedules import Update
from mtlprune_bench.seeds import derive
from mtlprune_bench.state import (
    BEST,
    Learner,
    State,
    apply_masks,
    clear_moments,
    load_weights,
    make_optimizer,
    weights_of,
)
from mtlprune_bench.store import append_history
from mtlprune_bench.tasks import Batch, Objective

FLUSH_EVERY = 10
"""Steps between two looks at the losses on an accelerator, where looking waits for it."""

HISTORY = "history.jsonl"


@dataclass(frozen=True)
class Watch:
    """What the loop tells while it runs: the losses of each step, and masks before and after an update."""

    step_finished: Callable[[int, Mapping[str, float]], None]
    masks_updated: Callable[[int, Masks, Masks], None]


Remake = Callable[[Update, Masks, Batch], tuple[dict[str, Tensor], dict[str, Tensor]]]
"""Makes the masks of an update of the present ones, with the batch of the step that follows at hand.

The second mapping says which of the kept weights begin anew, with value and moments zero.
"""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training, from a model's present weights, at step `first`, to the end of its recipe.

    `plan` holds the updates to make on the way, and `update` makes the masks of one. With `stale` removed
    weights are hidden from the forward pass instead of being zero, and go on decaying under the optimizer.
    `learner` is for methods whose masks are trained. `batches(step)` gives the training batches from that
    step on. `select(step)` is the loss by which the best weights are chosen, None where the last ones stand.
    All files lie in `folder`.
    """

    model: nn.Module
    objective: Objective
    recipe: Recipe
    batches: Callable[[int], Iterable[Batch]]
    select: Callable[[], float] | None
    folder: Path
    seed: int
    checkpoint_seconds: float
    watch: Watch
    first: int = 0
    plan: tuple[Update, ...] = ()
    update: Remake | None = None
    stale: bool = False
    learner: Learner | None = None


@dataclass(frozen=True)
class Trained:
    """The masks at the end of a training, and the seconds that it took in all sessions."""

    masks: dict[str, Tensor]
    seconds: float


def train(training: Training, masks: Masks) -> Trained:
    """Train the model under `masks` (empty: dense) and return the masks at the end.

    Continues from the folder's checkpoint where there is one; on a CPU the result is the same to the bit.
    The model is left with the weights that the protocol selects. Raises DivergedError at a loss that is not
    finite, and StoreError where the folder cannot be written.
    """
    model, recipe = training.model, training.recipe
    optimizer = make_optimizer(model, recipe, training.learner)
    state = State(model, optimizer, dict(masks), training.learner, step=training.first)
    state.resume(training.folder)
    if not training.stale:
        apply_masks(model, state.masks)
    updates = {step: tuple(group) for step, group in itertools.groupby(training.plan, lambda update: update.step)}
    saved = time.monotonic()
    with torch.random.fork_rng(devices=sorted({p.device.index for p in model.parameters() if p.is_cuda})):
        for batch in itertools.islice(training.batches(state.step), recipe.steps - state.step):
            for update in updates.get(state.step, ()):
                _update(training, state, update, batch)
            _step(training, state, batch)
            state.step += 1
            _select(training, state)
            _look(training, state)
            if time.monotonic() - saved >= training.checkpoint_seconds and not state.unseen:
                state.save(training.folder)
                saved = time.monotonic()
    return _finish(training, state)


def _step(training: Training, state: State, batch: Batch) -> None:
    """Make one optimizer step; removed weights get no gradient, and with zero moments they stay zero."""
    # Dropout draws from torch's generator: seeded by the step, it is the same after a resume.
    torch.manual_seed(derive(training.seed, "dropout", state.step))
    for group in state.optimizer.param_groups:
        group["lr"] = training.recipe.lr_at(state.step) * group.get("factor", 1.0)
    training.model.train()
    losses = training.objective.losses(_forward(training, state, batch.images), batch)
    state.optimizer.zero_grad(set_to_none=True)
    learner = training.learner
    total = learner.total(losses, state.step) if learner else training.objective.total(losses)
    total.backward()  # type: ignore[no-untyped-call]
    if learner:
        learner.after_backward()
    elif not training.stale:
        state.gradient_mask()
    state.optimizer.step()
    state.unseen.append((state.step, tuple(losses), torch.stack(list(losses.values())).detach()))


def _forward(training: Training, state: State, images: Tensor) -> dict[str, Tensor]:
    """Return the predictions; stale weights are hidden by their masks, which also stop their gradients."""
    if not training.stale:
        outputs: dict[str, Tensor] = training.model(images)
        return outputs
    parameters = dict(training.model.named_parameters())
    hidden = {name: parameters[name] * mask.to(parameters[name].device) for name, mask in state.masks.items()}
    return functional_call(training.model, hidden, (images,))  # type: ignore[no-any-return]


def _update(training: Training, state: State, update: Update, batch: Batch) -> None:
    """Make the masks of an update; weights removed, or grown anew, are zero, and so are their moments."""
    assert training.update is not None, "a training with a plan has what makes its masks"
    before = state.masks
    after, fresh = training.update(update, before, batch)
    state.set_masks(after)
    if not training.stale:
        apply_masks(training.model, state.masks)
        clear_moments(state, {name: ~mask for name, mask in state.masks.items()})
        apply_masks(training.model, {name: ~chosen for name, chosen in fresh.items()})
        clear_moments(state, fresh)
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
    if training.plan and state.step <= training.plan[-1].step:
        return  # the masks do not have the sparsity asked for yet
    if training.learner is not None and not training.learner.reached:
        return
    stale = {name: tensor.clone() for name, tensor in weights_of(training.model).items()} if training.stale else {}
    if stale:
        apply_masks(training.model, state.masks)
    loss = training.select()
    if loss < state.best:
        state.best = loss
        save_tensors(training.folder / BEST, state.contents())
    if stale:
        load_weights(training.model, stale)


def _finish(training: Training, state: State) -> Trained:
    """Put the selected weights into the model, the last ones where none was selected, and return the masks."""
    if training.select is not None and math.isfinite(state.best):
        state.take_best(training.folder)
    if training.learner is not None:
        return Trained(training.learner.finish(), state.spent())
    if training.stale:
        apply_masks(training.model, state.masks)
    return Trained(state.masks, state.spent())
