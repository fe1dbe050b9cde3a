"""Scorers: how much each voter would miss each weight. Higher = keep. Scoring leaves no trace in the model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from mtlprune_bench.errors import UsageError
from mtlprune_bench.gradients import Losses, Voter, untouched, voter_gradients
from mtlprune_bench.seeds import derive
from mtlprune_bench.tasks import Batch

Scores = dict[str, dict[str, Tensor]]
"""A score for every weight that a voter sees: by voter, then by weight name."""


@dataclass(frozen=True)
class Scoring:
    """All that a scorer may look at.

    `batches(n)` gives the first n scoring batches, the same ones every time; `losses` is a forward pass;
    `seed` is the scorer's own.
    """

    model: nn.Module
    weights: Mapping[str, nn.Parameter]
    voters: Sequence[Voter]
    losses: Losses
    batches: Callable[[int], Iterable[Batch]]
    seed: int

    def generator(self, purpose: str) -> torch.Generator:
        """Return a CPU generator for `purpose`, seeded by `seed`."""
        return torch.Generator().manual_seed(derive(self.seed, purpose))


@dataclass(frozen=True)
class Noise:
    """Uniform noise, the same for all voters: random pruning."""

    name: str = field(default="noise", init=False)

    def passes(self, voters: int) -> tuple[int, int]:
        """Return the forward and backward passes that scoring for `voters` voters takes."""
        return 0, 0

    def __call__(self, scoring: Scoring) -> Scores:
        """Return noise in [0, 1) as float64, so that ties practically do not occur."""
        generator = scoring.generator("noise")
        noise = {
            name: torch.rand(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
            for name, weight in scoring.weights.items()
        }
        return {voter.name: {name: noise[name] for name in voter.weights} for voter in scoring.voters}


@dataclass(frozen=True)
class Magnitude:
    """abs(weight), the same for all voters."""

    name: str = field(default="magnitude", init=False)

    def passes(self, voters: int) -> tuple[int, int]:
        """Return the forward and backward passes that scoring for `voters` voters takes."""
        return 0, 0

    def __call__(self, scoring: Scoring) -> Scores:
        """Return the absolute values of the weights."""
        magnitude = {name: weight.detach().abs() for name, weight in scoring.weights.items()}
        return {voter.name: {name: magnitude[name] for name in voter.weights} for voter in scoring.voters}


@dataclass(frozen=True)
class Saliency:
    """abs(weight * gradient): how fast the loss changes as the weight is removed (SNIP, equation 5).

    Several batches are merged by adding up the absolute values of each, as DiSparse's code does
    (`merge="absolute"`), or the gradients before their absolute value is taken (`merge="signed"`).
    """

    batches: int = field(default=1, metadata={"help": "training batches to score on"})
    init: Literal["own", "xavier", "variance-scaling"] = field(
        default="own",
        metadata={"help": "weights to score: the model's own, or a fresh draw on a copy"},
    )
    mode: Literal["train", "eval"] = field(
        default="train", metadata={"help": "train: dropout and batch statistics are on while scoring"}
    )
    merge: Literal["absolute", "signed"] = field(
        default="absolute", metadata={"help": "what is added up over batches"}
    )
    forward: Literal["shared", "per-voter"] = field(
        default="shared", metadata={"help": "one forward pass for all voters, or one for each"}
    )
    name: str = field(default="saliency", init=False)

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise UsageError(f"batches of scorer 'saliency' is {self.batches}; it must be 1 or more.")

    def passes(self, voters: int) -> tuple[int, int]:
        """Return the forward and backward passes that scoring for `voters` voters takes."""
        return self.batches * (1 if self.forward == "shared" else voters), self.batches * voters

    def __call__(self, scoring: Scoring) -> Scores:
        """Return the saliency of each weight for each voter, float32, 0 or more."""
        with untouched(scoring.model), fresh_weights(scoring, self.init):
            scoring.model.train(self.mode == "train")
            torch.manual_seed(derive(scoring.seed, "dropout"))
            gradients = self._gradients(scoring)
            weights = {name: weight.detach() for name, weight in scoring.weights.items()}
            return {
                voter: {name: (weights[name] * total).abs_() for name, total in totals.items()}
                for voter, totals in gradients.items()
            }

    def _gradients(self, scoring: Scoring) -> Scores:
        """Return the sum over batches of the gradients, or of their absolute values, by voter."""
        totals = {
            voter.name: {name: torch.zeros_like(scoring.weights[name]) for name in voter.weights}
            for voter in scoring.voters
        }
        for batch in scoring.batches(self.batches):
            for voter, gradients in voter_gradients(
                scoring.losses, batch, scoring.voters, scoring.weights, self.forward == "shared"
            ):
                # abs(w * g) summed over batches is abs(w) times the sum of abs(g): w is the same in all.
                for total, gradient in zip(totals[voter.name].values(), gradients, strict=True):
                    total.detach().add_(gradient.abs() if self.merge == "absolute" else gradient)
        return totals


@contextlib.contextmanager
def fresh_weights(scoring: Scoring, init: str) -> Iterator[None]:
    """Give the model freshly drawn prunable weights while the context lasts, then its own again."""
    if init == "own":
        yield
        return
    own = {name: weight.detach().clone() for name, weight in scoring.weights.items()}
    generator = scoring.generator("init")
    try:
        with torch.no_grad():
            for weight in scoring.weights.values():
                weight.copy_(draw_weights(weight.shape, init, generator))
        yield
    finally:
        with torch.no_grad():
            for name, weight in scoring.weights.items():
                weight.copy_(own[name])


def draw_weights(shape: torch.Size, init: str, generator: torch.Generator) -> Tensor:
    """Return weights drawn on the CPU: "xavier" normal, or "variance-scaling", truncated normal of fan-in.

    The second is SNIP's: variance 1 / fan_in after cutting at two standard deviations, which TensorFlow
    corrects for by the factor 0.8796.
    """
    weight = torch.empty(shape)
    if init == "xavier":
        return nn.init.xavier_normal_(weight, generator=generator)
    spread = math.sqrt(1 / weight[0].numel()) / 0.87962566103423978
    return nn.init.trunc_normal_(weight, 0, spread, -2 * spread, 2 * spread, generator=generator)


noise = Noise
magnitude = Magnitude
saliency = Saliency
