"""Recipes: how a network is trained. They belong to a dataset, never to a method, so that comparisons are fair."""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from mtlprune_bench.errors import UsageError

Precision = Literal["fp32", "bf16", "fp16", "fp64"]
MemoryFormat = Literal["channels_first", "channels_last"]


def setting(default: Any, help: str) -> Any:
    """Return a recipe field with its help text."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Optimizer, schedule and augmentation of one training; Adam with fused updates throughout.

    The defaults are what DiSparse trains NYU-v2 with (section 4.3, and its code).
    """

    steps: int = setting(20_000, "optimizer steps")
    batch: int = setting(16, "images a step")
    accumulate: int = setting(
        1, "pieces that a batch is cut into, one after the other; batch statistics are those of a piece"
    )
    precision: Precision = setting(
        "fp32", "of forward passes in training; weights and all other passes are fp32, or fp64 throughout"
    )
    memory_format: MemoryFormat = setting(
        "channels_first",
        "of activations in training; the other may be faster, but rounds differently and drops others",
    )
    compile: bool = setting(
        False, "whether torch.compile makes kernels for training; they may be faster, but round differently"
    )
    crop: int = setting(321, "side of the square training crop, pixels")
    lr: float = setting(1e-3, "learning rate of the first step")
    lr_decay: float = setting(0.5, "factor on the learning rate every lr_decay_every steps")
    lr_decay_every: int = setting(4000, "steps between two decays")
    weight_decay: float = setting(5e-4, "L2 penalty inside Adam")
    scale_low: float = setting(0.5, "smallest random enlargement")
    scale_high: float = setting(1.5, "largest random enlargement")
    mirror: float = setting(0.5, "probability of mirroring an image, in [0, 1]")
    eval_batch: int = setting(1, "images a batch in evaluation")
    select_every: int = setting(50, "steps between evaluations where the protocol selects a checkpoint")
    update_every: int = setting(50, "steps between two updates of masks, for methods that prune while training")
    update_stop: float = setting(0.75, "fraction of training after which masks change no more, in (0, 1)")

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch",
            "accumulate",
            "crop",
            "lr_decay_every",
            "eval_batch",
            "select_every",
            "update_every",
        ):
            self._check(name, getattr(self, name) >= 1, "1 or more")
        self._check("accumulate", self.accumulate <= self.batch, f"at most batch, which is {self.batch}")
        formats = typing.get_args(MemoryFormat)
        self._check("memory_format", self.memory_format in formats, "channels_first or channels_last")
        self._check("precision", self.precision in typing.get_args(Precision), "fp32, bf16, fp16 or fp64")
        for name in ("lr", "lr_decay", "scale_low"):
            self._check(name, 0 < getattr(self, name) < math.inf, "above 0")
        self._check("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more")
        self._check("scale_high", self.scale_low <= self.scale_high < math.inf, "at least scale_low")
        self._check("update_stop", 0 < self.update_stop < 1, "in (0, 1)")
        self._check("mirror", 0 <= self.mirror <= 1, "in [0, 1]")

    @property
    def double(self) -> bool:
        """Return whether weights and images have double precision."""
        return self.precision == "fp64"

    def _check(self, name: str, good: bool, needed: str) -> None:
        if not good:
            raise UsageError(f"{name} of a recipe is {getattr(self, name)}; it must be {needed}.")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of `step`, counted from 0."""
        return self.lr * self.lr_decay ** (step // self.lr_decay_every)
