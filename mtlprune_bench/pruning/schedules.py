"""Schedules: when a network is pruned, and how far, as a plan that can be printed before training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from mtlprune_bench.errors import UsageError
from mtlprune_bench.recipe import Recipe


@dataclass(frozen=True)
class Update:
    """Before optimizer step `step` (from 0) the masks are made anew, for `sparsity` in [0, 1).

    `regrow` is the fraction, in [0, 1), of the kept weights that are dropped and grown back elsewhere; None
    where weights are only pruned. With `restart` training begins anew here, with a fresh optimizer, and with
    the weights that the method's start says.
    """

    step: int
    sparsity: float
    regrow: float | None = None
    restart: bool = False


@dataclass(frozen=True)
class Span:
    """One training of a plan: `steps` optimizer steps from step `start` of the plan on.

    The steps of `updates` count from the beginning of this training.
    """

    start: int
    steps: int
    updates: tuple[Update, ...]

    @property
    def first(self) -> Update | None:
        """Return the update that makes the masks before this training, if there is one."""
        update = self.updates[0] if self.updates else None
        return update if update and update.step == 0 and update.regrow is None else None

    @property
    def later(self) -> tuple[Update, ...]:
        """Return the updates that are made while this training runs."""
        return self.updates[1:] if self.first else self.updates


def spans(plan: Sequence[Update], steps: int) -> tuple[Span, ...]:
    """Return the trainings that `plan` consists of; the last one has `steps` optimizer steps."""
    starts = [0, *(update.step for update in plan if update.restart)]
    ends = [*starts[1:], starts[-1] + steps]
    return tuple(
        Span(
            start,
            end - start,
            tuple(replace(update, step=update.step - start) for update in plan if start <= update.step < end),
        )
        for start, end in zip(starts, ends, strict=True)
    )


@dataclass(frozen=True)
class Never:
    """Leaves the network dense."""

    name: str = field(default="never", init=False)

    def plan(self, sparsity: float, recipe: Recipe) -> tuple[Update, ...]:
        """Return the empty plan."""
        return ()


@dataclass(frozen=True)
class Once:
    """Prunes to the sparsity asked for in one go, before optimizer step `step`."""

    step: int = field(default=0, metadata={"help": "optimizer step before which the masks are made"})
    name: str = field(default="once", init=False)

    def plan(self, sparsity: float, recipe: Recipe) -> tuple[Update, ...]:
        """Return the plan for a training by `recipe`. Raises UsageError where it ends before `step`."""
        if not 0 <= self.step < recipe.steps:
            raise UsageError(f"Schedule 'once' prunes at step {self.step}, but training has {recipe.steps} steps.")
        return (Update(self.step, sparsity),)


@dataclass(frozen=True)
class Every:
    """Prunes before the first step, then drops and regrows weights every `interval` steps until `stop`.

    The fraction regrown at step t is `regrow` / 2 (1 + cos(pi t / T)), T the step of `stop` (RigL, equation
    1); the last update, at T, regrows nothing and leaves exactly the sparsity asked for.
    """

    regrow: float = field(default=0.3, metadata={"help": "fraction regrown at the first update, in (0, 1)"})
    interval: int | None = field(
        default=None, metadata={"help": "steps between two updates; default: the recipe's update_every"}
    )
    stop: float | None = field(
        default=None, metadata={"help": "fraction of training after the last update; default: update_stop"}
    )
    decay: Literal["cosine", "constant"] = field(
        default="cosine", metadata={"help": "how the fraction regrown falls over time"}
    )
    after: bool = field(
        default=False, metadata={"help": "update after the step at the interval, not before it (SET)"}
    )
    name: str = field(default="every", init=False)

    def __post_init__(self) -> None:
        if not 0 < self.regrow < 1:
            raise UsageError(f"regrow of schedule 'every' is {self.regrow}; it must be in (0, 1).")

    def plan(self, sparsity: float, recipe: Recipe) -> tuple[Update, ...]:
        """Return the plan for a training by `recipe`. Raises UsageError where it has no room for it."""
        delay = int(self.after)
        steps, last = _steps(self.name, self.interval, self.stop, recipe, delay)
        updates = [Update(0, sparsity)]
        updates += [Update(t + delay, sparsity, self.fraction(t, last)) for t in steps if t < last]
        return (*updates, Update(last + delay, sparsity, 0.0))

    def fraction(self, step: int, last: int) -> float:
        """Return the fraction regrown at `step` of `last`."""
        if self.decay == "constant":
            return self.regrow
        return self.regrow / 2 * (1 + math.cos(math.pi * step / last))


@dataclass(frozen=True)
class Cubic:
    """Prunes more and more: s(t) = S (1 - (1 - t / T) ** 3) every `interval` steps, T the step of `stop`.

    Zhu and Gupta, "To prune, or not to prune", equation 1, from a sparsity of 0.
    """

    interval: int | None = field(
        default=None, metadata={"help": "steps between two updates; default: the recipe's update_every"}
    )
    stop: float | None = field(
        default=None, metadata={"help": "fraction of training after the last update; default: update_stop"}
    )
    name: str = field(default="cubic", init=False)

    def plan(self, sparsity: float, recipe: Recipe) -> tuple[Update, ...]:
        """Return the plan for a training by `recipe`. Raises UsageError where it has no room for it."""
        steps, last = _steps(self.name, self.interval, self.stop, recipe, 0)
        middle = [Update(t, sparsity * (1 - (1 - t / last) ** 3)) for t in steps if t < last]
        return (*middle, Update(last, sparsity))


@dataclass(frozen=True)
class Levels:
    """Prunes in rounds of training, each of which keeps the same fraction of the weights that are left.

    Each round is a training by the recipe and begins with its pruning; the last one has the sparsity asked
    for. With `steps` the rounds are that short, and one training by the whole recipe follows them.
    """

    rounds: int = field(default=5, metadata={"help": "how often the network is pruned"})
    rate: float | None = field(
        default=None,
        metadata={"help": "fraction of the weights left that a round removes; then as many rounds as needed"},
    )
    steps: int | None = field(default=None, metadata={"help": "optimizer steps of a round; default: the recipe's"})
    name: str = field(default="levels", init=False)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"rounds of schedule 'levels' is {self.rounds}; it must be 1 or more.")
        if self.rate is not None and not 0 < self.rate < 1:
            raise UsageError(f"rate of schedule 'levels' is {self.rate}; it must be in (0, 1).")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"steps of schedule 'levels' is {self.steps}; it must be 1 or more.")

    def plan(self, sparsity: float, recipe: Recipe) -> tuple[Update, ...]:
        """Return the plan for trainings by `recipe`."""
        length = recipe.steps if self.steps is None else self.steps
        levels = [*self.sparsities(sparsity), *([] if self.steps is None else [sparsity])]
        return tuple(Update(n * length, level, restart=n > 0) for n, level in enumerate(levels))

    def sparsities(self, sparsity: float) -> list[float]:
        """Return the sparsity of each round; the last is `sparsity`."""
        if self.rate is None:
            rounds, kept = self.rounds, (1 - sparsity) ** (1 / self.rounds)
        else:
            kept = 1 - self.rate
            # A little less, as 1 - 0.8 ** 3 is a rounding error away from 0.488.
            rounds = max(1, math.ceil(math.log(1 - sparsity) / math.log(kept) - 1e-9))
        return [*(1 - kept**number for number in range(1, rounds)), sparsity]


def _steps(
    name: str, interval: int | None, stop: float | None, recipe: Recipe, delay: int
) -> tuple[Iterator[int], int]:
    """Return the steps of regular updates, and the last one. Raises UsageError where there is no room."""
    every = recipe.update_every if interval is None else interval
    fraction = recipe.update_stop if stop is None else stop
    last = round(fraction * recipe.steps) if 0 < fraction < 1 else 0
    if every < 1 or not 0 < last < recipe.steps - delay:
        raise UsageError(
            f"Schedule '{name}' updates every {every} steps until {fraction} of {recipe.steps} steps; the "
            "interval must be 1 or more, and the last update must come after the first step and before the last."
        )
    return iter(range(0, last + 1, every)), last


never = Never
once = Once
every = Every
cubic = Cubic
levels = Levels
