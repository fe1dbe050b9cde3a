"""Training: one loop for every method, whose masks and state survive being killed at any step."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mtlprune_bench.errors import UsageError
from mtlprune_bench.processes import ALONE, Processes
from mtlprune_bench.pruning.masks import Masks
from mtlprune_bench.pruning.schedules import Update
from mtlprune_bench.recipe import Recipe
from mtlprune_bench.seeds import derive
from mtlprune_bench.store import append_history
from mtlprune_bench.tasks import Batch, Objective
from mtlprune_bench.training.checkpoint import save_tensors
from mtlprune_bench.training.forward import Forward, forward_pass
from mtlprune_bench.training.numerics import Origin, Unseen, check_step, check_weights, gradient_norms, look
from mtlprune_bench.training.state import (
    BEST,
    Learner,
    State,
    apply_masks,
    clear_moments,
    load_weights,
    make_optimizer,
    weights_of,
)

READINGS = 200
"""How many times at most a training is measured while it runs, its last step not counted."""

FLUSH_EVERY = 10
"""Steps between two looks at the losses on an accelerator, where looking waits for it."""

HISTORY = "history.jsonl"


@dataclass(frozen=True)
class Reading:
    """What a training is like after a step: `removed` are the weights that are zero in each layer, and all of it.

    `total` is the weighted loss of the step's batch. `learned` are thresholds and task weights, by name.
    """

    learning_rate: float
    total: float
    removed: Mapping[str, tuple[int, int]]
    learned: Mapping[str, float]


@dataclass(frozen=True)
class Watch:
    """What the loop tells while it runs: losses, masks before and after an update, and how to read its state."""

    step_finished: Callable[[int, Mapping[str, float]], None]
    masks_updated: Callable[[int, Masks, Masks], None]
    measured: Callable[[int, Callable[[], Reading]], None] = lambda step, read: None


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
    step on. `select()` is the loss by which the best weights are chosen, None where the last ones stand.
    All files lie in `folder`; only the first of `processes` touches them. The batches, and all else, are the
    same in every process. `origin` says what a step's numbers come from, for errors.
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
    processes: Processes = ALONE
    origin: Origin = Origin()

    @cached_property
    def forward(self) -> Forward:
        """Return the network's forward pass, which may be compiled once for all steps."""
        if self.recipe.compile and self.processes.count > 1:
            raise UsageError("Kernels cannot be made for a run on several devices: set train.compile=false.")
        return forward_pass(self.model, self.recipe)


@dataclass(frozen=True)
class Trained:
    """The masks at the end of a training, and the seconds that it took in all sessions."""

    masks: dict[str, Tensor]
    seconds: float


def train(training: Training, masks: Masks) -> Trained:
    """Train the model under `masks` (empty: dense) and return the masks at the end.

    Continues from the folder's checkpoint where there is one; on a CPU the result is the same to the bit.
    The model is left with the weights that the protocol selects. Raises DivergedError at a loss or a gradient
    that is not finite, with the checkpoint before it kept, and StoreError where the folder cannot be written.
    """
    model, recipe, first = training.model, training.recipe, training.processes.first
    optimizer = make_optimizer(model, recipe, training.learner)
    scaler = torch.amp.GradScaler(_device(model).type, enabled=recipe.precision == "fp16")
    state = State(model, optimizer, dict(masks), training.learner, scaler, training.processes, training.first)
    state.resume(training.folder)
    if not training.stale:
        apply_masks(model, state.masks)
    updates = {step: tuple(group) for step, group in itertools.groupby(training.plan, lambda update: update.step)}
    saved = time.monotonic()
    with torch.random.fork_rng(devices=sorted({p.device.index for p in model.parameters() if p.is_cuda})):
        for batch in itertools.islice(training.batches(state.step), recipe.steps - state.step):
            for update in updates.get(state.step, ()):
                _update(training, state, update, batch)
            make_step(training, state, batch)
            if state.step % max(1, recipe.steps // READINGS) == 0 or state.step == recipe.steps - 1:
                training.watch.measured(state.step, partial(_read, training, state))
            state.step += 1
            _select(training, state)
            _look(training, state)
            if first and time.monotonic() - saved >= training.checkpoint_seconds and not state.unseen:
                check_weights(model, state.step)
                state.save(training.folder)
                saved = time.monotonic()
    return _finish(training, state)


def make_step(training: Training, state: State, batch: Batch) -> None:
    """Make one optimizer step; removed weights get no gradient, and with zero moments they stay zero."""
    # Dropout draws from torch's generator: seeded by the step, it is the same after a resume.
    torch.manual_seed(derive(training.seed, "dropout", state.step))
    for group in state.optimizer.param_groups:
        group["lr"] = training.recipe.lr_at(state.step) * group.get("factor", 1.0)
    training.model.train()
    state.optimizer.zero_grad(set_to_none=True)
    losses = _backward(training, state, batch)
    training.processes.add_up([p.grad for p in training.model.parameters() if p.grad is not None])
    # Before anybody takes gradients away: where one overflowed, the scaler passes over the step.
    state.scaler.unscale_(state.optimizer)
    if training.learner:
        training.learner.after_backward()
    elif not training.stale:
        state.gradient_mask()
    # The scaler's own search for what overflowed is enough: it passes over such steps.
    names, norms = ((), torch.zeros(0)) if state.scaler.is_enabled() else gradient_norms(training.model)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.unseen.append(Unseen(state.step, tuple(losses), torch.stack(list(losses.values())), names, norms))


def _read(training: Training, state: State) -> Reading:
    """Return what the training is like now; on an accelerator this waits for it."""
    last, learner = state.unseen[-1], training.learner
    total = (learner or training.objective).total(dict(zip(last.tasks, last.losses, strict=True)))
    removed = {name: (int((~mask).sum()), mask.numel()) for name, mask in state.masks.items()}
    return Reading(
        learning_rate=training.recipe.lr_at(state.step),
        total=float(total),
        removed=learner.removed() if learner else removed,
        learned=learner.numbers() if learner else {},
    )


def _backward(training: Training, state: State, batch: Batch) -> dict[str, Tensor]:
    """Add up the gradients of a batch, piece after piece, and return each task's loss, the mean over pieces."""
    learner, count = training.learner, training.recipe.accumulate
    sums: dict[str, Tensor] = {}
    for piece in batch.parts(count):
        losses = training.objective.losses(_forward(training, state, piece.images), piece)
        if learner and count == 1:
            learner.observe(losses, state.step)
        total = learner.total(losses) if learner else training.objective.total(losses)
        state.scaler.scale(total / count).backward()  # type: ignore[no-untyped-call]
        for task, loss in losses.items():
            sums[task] = sums.get(task, 0) + loss.detach() / count
    if learner and count > 1:
        # The losses of a whole batch are known too late for its own weights: they count from the next step on.
        learner.observe(sums, state.step)
    return sums


def _forward(training: Training, state: State, images: Tensor) -> dict[str, Tensor]:
    """Return the predictions; stale weights are hidden by their masks, which also stop their gradients."""
    hidden: dict[str, Tensor] = {}
    if training.stale:
        parameters = dict(training.model.named_parameters())
        hidden = {name: parameters[name] * mask.to(parameters[name].device) for name, mask in state.masks.items()}
    return training.processes.forward(partial(training.forward, hidden), images)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


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
    pause = FLUSH_EVERY if state.unseen[0].losses.is_cuda else 1
    if state.step % pause and state.step < training.recipe.steps:
        return
    steps = look(state.unseen)
    state.unseen.clear()
    if training.processes.first:
        entries = [{"step": seen.step, "losses": losses} for seen, losses, _ in steps]
        append_history(training.folder / HISTORY, entries)
    for seen, losses, norm in steps:
        kept = f" The checkpoint before step {state.saved} is kept." if state.saved is not None else ""
        check_step(seen, losses, norm, training.origin, kept)
        training.watch.step_finished(seen.step, losses)


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
        if training.processes.first:
            save_tensors(training.folder / BEST, state.contents())
    if stale:
        load_weights(training.model, stale)


def _finish(training: Training, state: State) -> Trained:
    """Put the selected weights into the model, the last ones where none was selected, and return the masks."""
    if training.select is not None and math.isfinite(state.best):
        state.take_best(training.folder)
    check_weights(training.model, state.step)
    if training.learner is not None:
        return Trained(training.learner.finish(), state.spent())
    if training.stale:
        apply_masks(training.model, state.masks)
    return Trained(state.masks, state.spent())
