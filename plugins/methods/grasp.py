"""GraSP: remove, before training, the weights whose removal hurts the flow of gradients least.

Removing weight w_q changes the squared norm of the gradient g by -2 w_q (Hg)_q, to first order, with H the
Hessian of the loss. The authors score -w_q (Hg)_q and remove the highest, which are those whose removal lets
the norm grow most; here higher = keep, so that the score is +w_q (Hg)_q. It is signed: no absolute value.

Departs from the authors' code (alecwangcq/GraSP, pruner/GraSP.py):
- Every weight scored is the one that training starts from. The authors draw linear layers anew for scoring, and
  train the old ones; `--set method.score.linear=xavier` does so too.
- The temperature divides the logits of tasks with classes; others have none. Under the total loss it leaves such
  tasks little say beside the others: it divides their gradient, and their Hessian by its square. With
  scope=per-task the size of a task's scores does not matter.
- A training batch, not a fixed number of images of each class: every image has pixels of many classes.
- Exact sparsity: the authors remove one weight less than asked.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from mtlprune_bench import (
    AT_INIT,
    JOINT,
    Method,
    Register,
    Scores,
    Scoring,
    UsageError,
    derive,
    hookimpl,
    once,
    untouched,
)

HALVES = 2
"""Pieces that each batch is cut into, as the authors do to save memory; batch norm sees each alone."""


@dataclass(frozen=True)
class GraSP:
    """weight * (Hessian @ gradient): how much of the gradient's norm is lost with the weight.

    The loss is the sum of a voter's losses on the halves of all batches, in training mode. Both passes over a
    half draw the same dropout, so that g and H belong to one function (the authors' networks have no dropout).
    """

    batches: int = field(default=1, metadata={"help": "training batches to score on"})
    temperature: float = field(
        default=200.0, metadata={"help": "divisor of the logits of tasks with classes while scoring"}
    )
    linear: Literal["own", "xavier"] = field(
        default="own", metadata={"help": "weights of linear layers to score: the model's own, or a fresh draw"}
    )
    name: str = field(default="grasp", init=False)

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise UsageError(f"batches of scorer 'grasp' is {self.batches}; it must be 1 or more.")
        if not 0 < self.temperature < math.inf:
            raise UsageError(f"temperature of scorer 'grasp' is {self.temperature}; it must be above 0.")

    def passes(self, voters: int) -> tuple[int, int]:
        """Return the forward and backward passes, on halves of batches, that scoring for `voters` voters takes.

        Two forward passes a half; for each voter a backward for g, one for the graph of g, one through it.
        """
        halves = HALVES * self.batches
        return 2 * halves, 3 * halves * voters

    def __call__(self, scoring: Scoring) -> Scores:
        """Return weight * Hg of each weight for each voter, of the weight's type and any sign."""
        with untouched(scoring.model), redrawn_linear(scoring, self.linear):
            scoring.model.train()
            products = self._hessian_products(scoring, self._gradients(scoring))
            return {
                voter: {name: product.mul_(scoring.weights[name].detach()) for name, product in own.items()}
                for voter, own in products.items()
            }

    def _losses(self, scoring: Scoring) -> Iterator[dict[str, Tensor]]:
        """Yield each task's loss on one half after the other: to the bit the same ones in every pass."""
        number = 0
        for batch in scoring.batches(self.batches):
            for half in batch.parts(HALVES):
                torch.manual_seed(derive(scoring.seed, "dropout", number))
                yield scoring.losses(half, self.temperature)
                number += 1

    def _gradients(self, scoring: Scoring) -> Scores:
        """Return g by voter: the gradient of its loss, summed over halves."""
        totals = zeros(scoring)
        for losses in self._losses(scoring):
            for voter in scoring.voters:
                chosen = [scoring.weights[name] for name in voter.weights]
                keep_graph = voter is not scoring.voters[-1]
                add(totals[voter.name], torch.autograd.grad(voter.loss(losses), chosen, retain_graph=keep_graph))
        return totals

    def _hessian_products(self, scoring: Scoring, gradients: Scores) -> Scores:
        """Return Hg by voter: the gradient of <g, gradient of its loss>, g held fixed, summed over halves."""
        totals = zeros(scoring)
        for losses in self._losses(scoring):
            for voter in scoring.voters:
                chosen = [scoring.weights[name] for name in voter.weights]
                graph = torch.autograd.grad(voter.loss(losses), chosen, create_graph=True)
                fixed = gradients[voter.name].values()
                flow = torch.stack([(g * own).sum() for g, own in zip(fixed, graph, strict=True)]).sum()
                keep_graph = voter is not scoring.voters[-1]
                # A weight that no gradient depends on, as in a layer that the loss is linear in, has Hg = 0.
                products = torch.autograd.grad(flow, chosen, retain_graph=keep_graph, materialize_grads=True)
                add(totals[voter.name], products)
        return totals


def zeros(scoring: Scoring) -> Scores:
    """Return a zero for each weight of each voter."""
    return {
        voter.name: {name: torch.zeros_like(scoring.weights[name]).detach() for name in voter.weights}
        for voter in scoring.voters
    }


def add(totals: dict[str, Tensor], terms: Sequence[Tensor]) -> None:
    """Add to each of `totals` its term, in place."""
    for total, term in zip(totals.values(), terms, strict=True):
        total.add_(term)


@contextlib.contextmanager
def redrawn_linear(scoring: Scoring, init: str) -> Iterator[None]:
    """Where `init` is "xavier", draw the weights of linear layers anew while the context lasts."""
    layers = [layer.weight for layer in scoring.model.modules() if isinstance(layer, nn.Linear)]
    drawn = layers if init == "xavier" else []
    own = [weight.detach().clone() for weight in drawn]
    generator = scoring.generator("linear")
    try:
        with torch.no_grad():
            for weight in drawn:
                weight.copy_(nn.init.xavier_normal_(torch.empty(weight.shape), generator=generator))
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(drawn, own, strict=True):
                weight.copy_(before)


@hookimpl
def register_scorers(register: Register) -> None:
    """Register the scorer."""
    register(GraSP())


@hookimpl
def register_methods(register: Register) -> None:
    """Register the method."""
    register(
        Method(
            name="grasp",
            paper="https://arxiv.org/abs/2002.07376",
            score=GraSP(),
            scope=JOINT,
            schedule=once(),
            start=AT_INIT,
            sources={
                "score.batches": "GraSP's code: num_iters=1, of 10 images of each class",
                "score.temperature": "GraSP's code: T=200; for tasks with classes only",
                "score.linear": "what is scored is what is trained; GraSP's code draws linear layers anew",
                "scope": "the weighted total loss",
            },
        )
    )
