"""Gradients for each task alone, from one forward pass, and the promise to leave a model as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtlprune_bench.tasks import Batch

Losses = Callable[..., dict[str, Tensor]]
"""A forward pass: the loss of each task on a batch, not weighted; a second argument is a temperature."""


@dataclass(frozen=True)
class Voter:
    """Somebody with an opinion on weights: a weighted sum of task losses, and the weights it sees.

    `losses` holds the factor of each task's loss; `weights` the names of the weights, in the model's order.
    """

    name: str
    losses: Mapping[str, float]
    weights: tuple[str, ...]

    def loss(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the voter's loss, a scalar, of the tasks' `losses`."""
        return torch.stack([factor * losses[task] for task, factor in self.losses.items()]).sum()


def voter_gradients(
    losses: Losses,
    batch: Batch,
    voters: Sequence[Voter],
    weights: Mapping[str, Tensor],
    shared_forward: bool = True,
) -> Iterator[tuple[Voter, tuple[Tensor, ...]]]:
    """Yield each voter with the gradients of its loss, one for each of its weights and of its shape.

    With `shared_forward` all voters share one forward pass (and its dropout); without, each makes its own,
    as the released DiSparse code does.
    """
    for voter, loss, keep_graph in _voter_losses(losses, batch, voters, shared_forward):
        chosen = [weights[name] for name in voter.weights]
        yield voter, torch.autograd.grad(loss, chosen, retain_graph=keep_graph)


def take_gradients(
    losses: Losses,
    batch: Batch,
    voters: Sequence[Voter],
    weights: Mapping[str, Tensor],
    take: Callable[[Voter, str, Tensor], None],
    shared_forward: bool = True,
) -> None:
    """Call `take(voter, name, gradient)` with what `voter_gradients` yields, each gradient once it is there.

    So no more than a few are held at a time, which spares the memory of a copy of the weights.
    """
    for voter, loss, keep_graph in _voter_losses(losses, batch, voters, shared_forward):
        hooks = [
            weights[name].register_hook(_taking(take, voter, name))  # type: ignore[no-untyped-call]
            for name in voter.weights
        ]
        try:
            torch.autograd.grad(loss, [weights[name] for name in voter.weights], retain_graph=keep_graph)
        finally:
            for hook in hooks:
                hook.remove()


def _taking(take: Callable[[Voter, str, Tensor], None], voter: Voter, name: str) -> Callable[[Tensor], Tensor]:
    """Return a hook that hands a gradient over and leaves zeros without memory in its place."""

    def hook(gradient: Tensor) -> Tensor:
        take(voter, name, gradient)
        return gradient.new_zeros(()).expand_as(gradient)

    return hook


def _voter_losses(
    losses: Losses, batch: Batch, voters: Sequence[Voter], shared_forward: bool
) -> Iterator[tuple[Voter, Tensor, bool]]:
    """Yield each voter with its loss, and whether another one needs the same forward pass after it."""
    shared = losses(batch) if shared_forward else None
    for index, voter in enumerate(voters):
        loss = voter.loss(losses(batch) if shared is None else shared)
        yield voter, loss, shared is not None and index < len(voters) - 1


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore, on leaving, the buffers, training flags and gradients of `model` and torch's generators.

    Weights are not saved: who changes them puts them back.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training = {module: module.training for module in model.modules()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        for module, flag in training.items():
            module.training = flag
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
