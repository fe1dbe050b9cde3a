"""Methods whose masks are trained with the weights: thresholds that are learnt below which weights are zero."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from mtlprune_bench.errors import UsageError, unknown
from mtlprune_bench.pruning.method import axis
from mtlprune_bench.recipe import setting

FROM_TRAINED = "trained"
"""The checkpoint of a learned method that begins with the trained dense network."""

GroupBy = Literal["component", "layer", "network"]


def _check(what: str, value: object, good: bool, needed: str) -> None:
    if not good:
        raise UsageError(f"{what} is {value}; it must be {needed}.")


@dataclass(frozen=True)
class AdaptiveWeights:
    """Weights each task's loss by how much it changes from step to step, relative to the other tasks' changes.

    From `begin` on the changes of the mini-batch losses are collected; once there are more than fit into the
    window, a task's weight is their mean, and the weights of K tasks add up to K. Before that each is 1.
    AdapMTL, released code, main/trainer.py. Raises UsageError for a value out of range.
    """

    begin: float = setting(0.25, "fraction of the steps after which changes are collected, in [0, 1)")
    window: float = setting(0.025, "fraction of the steps that changes are averaged over, in (0, 1]")
    relative: bool = setting(True, "changes relative to the loss; false: absolute ones")
    name: str = field(default="adaptive", init=False)

    def __post_init__(self) -> None:
        _check("begin of adaptive weights", self.begin, 0 <= self.begin < 1, "in [0, 1)")
        _check("window of adaptive weights", self.window, 0 < self.window <= 1, "in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class LearnedMethod:
    """A pruning method that trains soft thresholds with the weights: sign(W) max(|W| - sigmoid(s), 0).

    One s for each group of weights; all stand still while the sparsity is at least the one asked for. Adam
    moves an s by about its learning rate a step, so `travel`, the sum of its learning rates, is how far it
    gets. `sources` and `variants` are those of a Method. Raises UsageError for a value out of range.
    """

    name: str
    description: str = field(default="", compare=False)
    paper: str = field(default="", compare=False)
    group_by: GroupBy = axis("component", "the weights that share a threshold: of a component, a layer, or all")
    s_init: float = axis(-20.0, "s of each threshold sigmoid(s) before the first step")
    threshold_weight_decay: float | None = axis(None, "L2 penalty on s inside Adam; default: the recipe's")
    eps: float = axis(1e-8, "Adam's epsilon, for weights and thresholds")
    travel: float | None = axis(None, "sum of the learning rates of s over all steps; default: the recipe's rates")
    latch: bool = axis(False, "thresholds that have stopped never move again, even where the sparsity falls back")
    exact_finalize: bool = axis(False, "at the end keep as many weights as were asked for, by |W| - sigmoid(s)")
    weighting: AdaptiveWeights | None = axis(
        None,
        "what multiplies the tasks' loss weights while training: none, or adaptive",
        choices={"none": None, "adaptive": AdaptiveWeights()},
    )
    checkpoint: str = axis(
        "", "weights to begin with: a file's, or trained for the trained dense network's; else initial"
    )
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    sparse: ClassVar[bool] = True
    budget: ClassVar[str] = "train"

    def __post_init__(self) -> None:
        if self.group_by not in typing.get_args(GroupBy):
            raise unknown(f"group_by of method '{self.name}'", str(self.group_by), typing.get_args(GroupBy))
        decay, travel = self.threshold_weight_decay, self.travel
        for axis_name, good, needed in (
            ("s_init", math.isfinite(self.s_init), "finite"),
            ("eps", 0 < self.eps < math.inf, "above 0"),
            ("threshold_weight_decay", decay is None or 0 <= decay < math.inf, "0 or more"),
            ("travel", travel is None or 0 < travel < math.inf, "above 0"),
        ):
            _check(f"{axis_name} of method '{self.name}'", getattr(self, axis_name), good, needed)

    @property
    def pretrained(self) -> bool:
        """Return whether pruning starts from trained weights."""
        return bool(self.checkpoint)
