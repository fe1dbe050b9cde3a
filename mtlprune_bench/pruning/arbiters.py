"""Arbiters: what becomes of a weight on which several tasks disagree.

An arbiter merges the ranks that the users of a weight give it, [n, ...] for n users, into one, [...]. All of
these are order statistics: "at least q of n users keep it at keep ratio r" is the same as "the q-th largest
of its n ranks is above 1 - r", whatever r is. So ranks can be merged before the ratio is known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mtlprune_bench.errors import UsageError


def quorum_rank(ranks: Tensor, quorum: int) -> Tensor:
    """Return the `quorum`-th largest along the first dimension of `ranks` [n, ...]: [...]; at most the n-th."""
    users = ranks.shape[0]
    if quorum <= 1:
        return ranks.amax(0)
    if quorum >= users:
        return ranks.amin(0)
    return torch.kthvalue(ranks, users - quorum + 1, dim=0).values


class OrderStatistic:
    """An arbiter that takes the q-th largest of the ranks that n users give a weight, so that q of them decide."""

    def quorum(self, users: int) -> int:
        """Return q, from 1 to `users`."""
        raise NotImplementedError

    def __call__(self, ranks: Tensor) -> Tensor:
        """Merge `ranks` [n, ...] into [...]."""
        return quorum_rank(ranks, self.quorum(ranks.shape[0]))


@dataclass(frozen=True)
class AtLeast(OrderStatistic):
    """Keeps a weight if at least `votes` of its users keep it; "or", DiSparse equation 18, is one vote."""

    votes: int = field(default=1, metadata={"help": "users that have to keep a weight"})

    @property
    def name(self) -> str:
        """Return the name that the registry knows it by."""
        return "or" if self.votes == 1 else f"at-least:{self.votes}"

    def quorum(self, users: int) -> int:
        """Return the votes that are needed, all where there are fewer users."""
        return min(self.votes, users)


@dataclass(frozen=True)
class Unanimous(OrderStatistic):
    """Keeps a weight only if all its users keep it."""

    name: str = field(default="and", init=False)

    def quorum(self, users: int) -> int:
        """Return the number of all users."""
        return users


@dataclass(frozen=True)
class Majority(OrderStatistic):
    """Keeps a weight if most of its users keep it (DiSparse, equation 19).

    With `tie` "keep" half of the votes are enough, the paper's wording: pruned if most agree to remove it.
    With "prune" more than half are needed.
    """

    tie: Literal["keep", "prune"] = field(
        default="keep", metadata={"help": "what half of the votes, no more and no fewer, do to a weight"}
    )

    @property
    def name(self) -> str:
        """Return the name that the registry knows it by."""
        return "majority" if self.tie == "keep" else "strict-majority"

    def quorum(self, users: int) -> int:
        """Return half of the users, rounded up, or more than half."""
        return (users + 1) // 2 if self.tie == "keep" else users // 2 + 1


@dataclass(frozen=True)
class Quorum:
    """Keeps a weight if at least q of its users keep it; ask for it with the number, as in at-least:2."""

    name: str = field(default="at-least", init=False)
    takes: str = field(default="q", init=False)

    def with_argument(self, argument: str) -> AtLeast:
        """Return the arbiter for q = `argument`, a whole number of 1 or more. Raises UsageError."""
        if not argument.isdigit() or int(argument) < 1:
            raise UsageError(f"Arbiter 'at-least:{argument}' needs a whole number of votes, as in at-least:2.")
        return AtLeast(int(argument))


OR = AtLeast(1)
AND = Unanimous()
MAJORITY = Majority()
