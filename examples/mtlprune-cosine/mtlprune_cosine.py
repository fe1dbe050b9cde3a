"""CosPrune: of a trained network, remove the filters on which the tasks' gradients disagree most.

Garg, Zhang and Guan, "Structured Pruning for Multi-Task Deep Neural Networks", 2023, arXiv:2304.06840. A filter of
the trunk is worth the cosine between its gradients of two tasks' losses, mean over all pairs of tasks and over
batches: where tasks pull apart, it goes. The network is pruned step by step while it is trained further.

Follows the authors' code (gargsid/MTLCosPrune, taylor_pruning/cosine_pruning_engine.py) but for these:
- Filters go as a whole, except for one in each layer, which loses as many weights as make the sparsity exact.
- Every layer keeps the same fraction (allocation uniform). Theirs ranks all filters of the trunk together and
  spares the last five of a layer; `--allocation global` ranks all together, and spares none.
- Heads are pruned too, as all methods here do. One task has nobody to disagree with: its filters are worth the
  square of their summed weight * gradient, by which the paper's single-task criterion ranks gates (Taylor).
- The first steps of fine-tuning remove most (schedule cubic); theirs removes equally many filters each time.
- The mean is over `batches` training batches at each update, not over all steps since the last one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlprune_bench import (
    OR,
    PER_TASK,
    TRAINED,
    Method,
    Register,
    Scores,
    Scoring,
    Uniform,
    UsageError,
    cubic,
    derive,
    hookimpl,
    untouched,
    voter_gradients,
)


@dataclass(frozen=True)
class Cosine:
    """How much a filter's users agree on it: the cosine of their gradients, mean over pairs and batches."""

    batches: int = field(default=10, metadata={"help": "training batches to score on"})
    name: str = field(default="cosine", init=False)

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise UsageError(f"batches of scorer 'cosine' is {self.batches}; it must be 1 or more.")

    def passes(self, voters: int) -> tuple[int, int]:
        """Return the forward and backward passes that scoring for `voters` voters takes."""
        return self.batches, self.batches * voters

    def __call__(self, scoring: Scoring) -> Scores:
        """Return the score of each filter for each of its weights, float64: the same for all who see it."""
        totals = {
            name: torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
            for name, weight in scoring.weights.items()
        }
        with untouched(scoring.model):
            scoring.model.train()
            torch.manual_seed(derive(scoring.seed, "dropout"))
            for batch in scoring.batches(self.batches):
                seen: dict[str, list[Tensor]] = {name: [] for name in totals}
                for voter, gradients in voter_gradients(scoring.losses, batch, scoring.voters, scoring.weights):
                    for name, gradient in zip(voter.weights, gradients, strict=True):
                        seen[name].append(gradient.flatten(1).double())
                for name, own in seen.items():
                    weight = scoring.weights[name].detach().flatten(1).double()
                    totals[name] += agreement(own) if len(own) > 1 else taylor(weight, own[0])
        scores = {
            name: (total / self.batches).view(-1, *[1] * (scoring.weights[name].ndim - 1))
            for name, total in totals.items()
        }
        return {
            voter.name: {name: scores[name].expand_as(scoring.weights[name]) for name in voter.weights}
            for voter in scoring.voters
        }


def agreement(gradients: list[Tensor]) -> Tensor:
    """Return the cosine of two or more gradients [filters, n], mean over pairs: [filters], in [-1, 1]."""
    directions = [F.normalize(gradient, dim=1, eps=1e-30) for gradient in gradients]
    cosines = [(one * two).sum(1) for one, two in itertools.combinations(directions, 2)]
    return torch.stack(cosines).mean(0)


def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return 1 + (weight . gradient) ** 2 of each filter, [filters]: above what any two tasks agree on."""
    return 1 + (weight * gradient).sum(1).square()


@hookimpl
def register_scorers(register: Register) -> None:
    """Register the scorer, for `--score cosine` with any other method."""
    register(Cosine())


@hookimpl
def register_methods(register: Register) -> None:
    """Register the method."""
    register(
        Method(
            name="cosprune",
            paper="https://arxiv.org/abs/2304.06840",
            score=Cosine(),
            scope=PER_TASK,
            arbiter=OR,
            allocation=Uniform(),
            schedule=cubic(),
            start=TRAINED,
            budget="finetune",
            sources={
                "score": "the authors' code, add_cosine_criteria",
                "score.batches": "the authors' code: all batches since the last update",
                "allocation": "the authors' code spares five filters a layer; equal shares empty none",
                "arbiter": "of no consequence with allocation uniform: all users score a filter alike",
                "schedule": "the authors' code: regular updates while training goes on",
            },
        )
    )
