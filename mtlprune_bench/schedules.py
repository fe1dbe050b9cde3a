"""Schedules: when a network is pruned, and how far, as a plan that can be printed before training."""

from __future__ import annotations

from dataclasses import dataclass, field

from mtlprune_bench.errors import UsageError


@dataclass(frozen=True)
class Update:
    """Before optimizer step `step` (from 0) the masks are made anew, for `sparsity` in [0, 1)."""

    step: int
    sparsity: float


@dataclass(frozen=True)
class Never:
    """Leaves the network dense."""

    name: str = field(default="never", init=False)

    def plan(self, sparsity: float, steps: int) -> tuple[Update, ...]:
        """Return the empty plan."""
        return ()


@dataclass(frozen=True)
class Once:
    """Prunes to the sparsity asked for in one go, before optimizer step `step`."""

    step: int = field(default=0, metadata={"help": "optimizer step before which the masks are made"})
    name: str = field(default="once", init=False)

    def plan(self, sparsity: float, steps: int) -> tuple[Update, ...]:
        """Return the plan for a training of `steps` steps. Raises UsageError where it ends before `step`."""
        if not 0 <= self.step < steps:
            raise UsageError(f"Schedule 'once' prunes at step {self.step}, but training has {steps} steps.")
        return (Update(self.step, sparsity),)


never = Never
once = Once
