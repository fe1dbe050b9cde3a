"""Scorers: how much each voter would miss each weight. Higher = keep. Scoring leaves no trace in the model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtlprune_bench.errors import UsageError
from mtlprune_bench.processes import ALONE, Processes
from mtlprune_bench.pruning.gradients import Losses, Voter, take_gradients, untouched
from mtlprune_bench.seeds import derive
from mtlprune_bench.tasks import Batch

Scores = dict[str, dict[str, Tensor]]
"""A score for every weight that a voter sees: by voter, then by weight name."""


@dataclass(frozen=True)
class Scoring:
    """All that a scorer may look at.

    `batches(n)` gives the first n scoring batches, the same ones every time; `current` is the batch that the
    next training step will use, None before training. `losses(batch)` is a forward pass and gives each task's
    loss; `losses(batch, temperature)` divides the logits of tasks with classes first. `seed` is the scorer's
    own. All `processes` of a run score, and all have to come to the same scores: by doing all the work alike, or
    by sharing it out.
    """

    model: nn.Module
    weights: Mapping[str, nn.Parameter]
    voters: Sequence[Voter]
    losses: Losses
    batches: Callable[[int], Iterable[Batch]]
    seed: int
    current: Batch | None = None
    processes: Processes = ALONE

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
    """abs(gradient) * abs(weight) ** power, summed over batches.

    Power 1 is how fast the loss changes as the weight is removed (SNIP, equation 5); 0 the gradient alone, by
    which removed weights are grown back (RigL); 2 DiSparse's criterion for trained networks (equation 15).
    Several batches are merged by adding up the absolute values of each, as DiSparse's code does
    (`merge="absolute"`), or the gradients before their absolute value is taken (`merge="signed"`).
    """

    power: Literal[0, 1, 2] = field(default=1, metadata={"help": "exponent of abs(weight)"})
    batches: int = field(
        default=1, metadata={"help": "training batches to score on; 0: the one that the next step trains on"}
    )
    parts: int = field(default=1, metadata={"help": "pieces that each batch is cut into, scored one by one"})
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

    def __post_init__(self) -> None:
        if self.batches < 0:
            raise UsageError(f"batches of scorer '{self.name}' is {self.batches}; it must be 0 or more.")
        if self.parts < 1:
            raise UsageError(f"parts of scorer '{self.name}' is {self.parts}; it must be 1 or more.")

    @property
    def name(self) -> str:
        """Return the name that the registry knows it by."""
        return ("gradient", "saliency", "gradient-flow")[self.power]

    def passes(self, voters: int) -> tuple[int, int]:
        """Return the forward and backward passes that scoring for `voters` voters takes."""
        pieces = max(self.batches, 1) * self.parts
        return pieces * (1 if self.forward == "shared" else voters), pieces * voters

    def __call__(self, scoring: Scoring) -> Scores:
        """Return the saliency of each weight for each voter, float32, 0 or more."""
        with untouched(scoring.model), fresh_weights(scoring, self.init):
            scoring.model.train(self.mode == "train")
            torch.manual_seed(derive(scoring.seed, "dropout"))
            gradients = self._gradients(scoring)
            with torch.no_grad():
                for name, weight in scoring.weights.items():
                    factor = weight.abs() ** self.power
                    for totals in gradients.values():
                        if name in totals:
                            totals[name].abs_().mul_(factor)
        return gradients

    def _gradients(self, scoring: Scoring) -> Scores:
        """Return the sum over batches of the gradients, or of their absolute values, by voter.

        Processes take turns at the pieces of batches; their sums are added up.
        """
        totals = {
            voter.name: {name: torch.zeros_like(scoring.weights[name]).detach() for name in voter.weights}
            for voter in scoring.voters
        }

        def add(voter: Voter, name: str, gradient: Tensor) -> None:
            # abs(w * g) summed over batches is abs(w) times the sum of abs(g): w is the same in all.
            totals[voter.name][name].add_(gradient.abs() if self.merge == "absolute" else gradient)

        for number, batch in enumerate(self._batches(scoring)):
            if scoring.processes.takes(number):
                shared = self.forward == "shared"
                take_gradients(scoring.losses, batch, scoring.voters, scoring.weights, add, shared)
            else:
                self._pass_over(scoring, batch)
        scoring.processes.add_up([total for own in totals.values() for total in own.values()])
        return totals

    def _pass_over(self, scoring: Scoring, batch: Batch) -> None:
        """Draw the random numbers of a piece that another process scores, so that the next one has its own."""
        if self.mode == "train":
            with torch.no_grad():
                for _ in range(1 if self.forward == "shared" else len(scoring.voters)):
                    scoring.losses(batch)

    def _batches(self, scoring: Scoring) -> Iterator[Batch]:
        """Yield the pieces of batches to score on. Raises UsageError where there is no present batch."""
        if self.batches:
            chosen = scoring.batches(self.batches)
        elif scoring.current is not None:
            chosen = [scoring.current]
        else:
            raise UsageError(f"Scorer '{self.name}' has batches=0, but before training there is no batch yet.")
        for batch in chosen:
            yield from batch.parts(self.parts)


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


def gradient(**settings: Any) -> Saliency:
    """Return the scorer abs(gradient)."""
    return Saliency(power=0, **settings)


def gradient_flow(**settings: Any) -> Saliency:
    """Return the scorer abs(gradient) * weight ** 2."""
    return Saliency(power=2, **settings)
