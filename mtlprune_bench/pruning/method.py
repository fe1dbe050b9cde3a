"""Methods: a pruning method is a value, one choice on each axis."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, Final, Literal
from typing import Protocol as Interface

from torch import Tensor

from mtlprune_bench.errors import UsageError, unknown
from mtlprune_bench.pruning.allocation import Global, Group, Shapes
from mtlprune_bench.pruning.schedules import Never, Update
from mtlprune_bench.pruning.scorers import Magnitude, Scores, Scoring
from mtlprune_bench.recipe import Recipe

Weights = Literal["init", "trained"]


class Scorer(Interface):
    """How much each voter would miss each weight."""

    @property
    def name(self) -> str: ...  # noqa: D102

    def passes(self, voters: int) -> tuple[int, int]: ...  # noqa: D102

    def __call__(self, scoring: Scoring) -> Scores: ...  # noqa: D102


class Allocation(Interface):
    """How the kept weights are shared out over groups of weights that compete with each other."""

    @property
    def name(self) -> str: ...  # noqa: D102

    def groups(self, shapes: Shapes, kept: int) -> tuple[Group, ...]: ...  # noqa: D102


class Schedule(Interface):
    """When the masks are made, and for which sparsity."""

    @property
    def name(self) -> str: ...  # noqa: D102

    def plan(self, sparsity: float, recipe: Recipe) -> tuple[Update, ...]: ...  # noqa: D102


@dataclass(frozen=True)
class Start:
    """Which weights are scored, and from which training goes on.

    `rewind` is for training that goes on from "init" after scoring "trained": the step of the dense training
    whose weights are taken, and with which training goes on (late rewinding; 0: the initial weights).
    """

    score_on: Weights = field(metadata={"help": "weights that are scored: init or trained"})
    train_from: Weights = field(metadata={"help": "weights that training goes on from: init or trained"})
    rewind: int = field(default=0, metadata={"help": "step of the dense training that weights are rewound to"})

    def __post_init__(self) -> None:
        if self.rewind < 0 or (self.rewind and not self.rewinds):
            raise UsageError(
                f"start.rewind is {self.rewind}; it must be 0, or more where trained weights are scored and "
                "training goes on from init."
            )

    @property
    def name(self) -> str:
        """Return it in words."""
        late = f" at step {self.rewind}" if self.rewind else ""
        return f"score {self.score_on}, train from {self.train_from}{late}"

    @property
    def pretrained(self) -> bool:
        """Return whether anything of a trained network is used."""
        return "trained" in (self.score_on, self.train_from)

    @property
    def rewinds(self) -> bool:
        """Return whether trained weights are scored and then forgotten."""
        return self.score_on == "trained" and self.train_from == "init"


AT_INIT = Start("init", "init")
TRAINED = Start("trained", "trained")
REWOUND = Start("trained", "init")

JOINT: Final = "joint"
PER_TASK: Final = "per-task"


@dataclass(frozen=True)
class Exact:
    """The merged masks have exactly the sparsity asked for."""

    name: str = field(default="exact", init=False)


@dataclass(frozen=True)
class FixedRatio:
    """Each voter keeps a fixed fraction of its weights, and whatever sparsity the arbiter makes of it stands.

    As in the released DiSparse code: floor(keep_ratio * n) weights a voter, and with `ties` "keep" all that
    equal the last of them too.
    """

    keep_ratio: float | None = field(
        default=None, metadata={"help": "fraction each voter keeps, in (0, 1]; default 1 - sparsity"}
    )
    ties: Literal["keep", "index"] = field(
        default="keep", metadata={"help": "equal scores: keep all, or the first by index"}
    )
    name: str = field(default="fixed-ratio", init=False)

    def __post_init__(self) -> None:
        if self.keep_ratio is not None and not 0 < self.keep_ratio <= 1:
            raise UsageError(f"keep_ratio is {self.keep_ratio}; it must be above 0 and at most 1.")


CALIBRATIONS: dict[str, Exact | FixedRatio] = {"exact": Exact(), "fixed-ratio": FixedRatio()}


def axis(default: Any, help: str, kind: str = "", choices: Mapping[str, Any] | None = None) -> Any:
    """Return a method's field: its help text, and the kind of registered thing, or the choices, of its value."""
    return field(default=default, metadata={"help": help, "kind": kind, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class Method:
    """A pruning method: which weights it scores, how voters agree, when it prunes, what it trains from.

    `sources` says where a setting's value comes from (a section of the paper, a line of the released code),
    by its dotted name; `variants` are named sets of axes, as in `--set method.variant=release`. Raises
    UsageError where the axes contradict each other.
    """

    name: str
    description: str = field(default="", compare=False)
    paper: str = field(default="", compare=False)
    score: Scorer | None = axis(None, "how much a voter would miss a weight", "scorers")
    scope: Literal["joint", "per-task"] = axis(
        JOINT, "joint: one voter, on the weighted total loss; per-task: one voter a task"
    )
    arbiter: Callable[[Tensor], Tensor] | None = axis(
        None, "what becomes of weights that voters disagree on", "arbiters"
    )
    allocation: Allocation = axis(Global(), "how kept weights are shared out over layers", "allocations")
    schedule: Schedule = axis(MISSING, "when the masks are made", "schedules")
    rounds: int = axis(1, "rounds in which masks are made, each scoring what the one before left")
    drop: Scorer = axis(Magnitude(), "how much a voter would miss a weight, where some are regrown", "scorers")
    grow: Scorer | None = axis(None, "how much a voter wants a removed weight back", "scorers")
    grown: Literal["zero", "kept"] = axis(
        "zero", "value of regrown weights: zero, or what they had if they were dropped at the same update"
    )
    removed: Literal["zero", "stale"] = axis(
        "zero", "value of removed weights: zero, or hidden and decaying, to come back as they are if regrown"
    )
    calibration: Exact | FixedRatio = axis(
        Exact(), "exact sparsity, or a fixed keep ratio for each voter", choices=CALIBRATIONS
    )
    start: Start = axis(AT_INIT, "which weights are scored, and from which training goes on")
    budget: Literal["train", "finetune"] = axis("train", "the recipe that pruned networks are trained by")
    network: Literal["multitask", "single-task", "small"] = axis(
        "multitask", "the dataset's network, one such for each task alone, or one with as few weights as are kept"
    )
    control: Literal["none", "shuffled", "redrawn"] = axis(
        "none", "what a control undoes of the masks: their places within each layer, or the weights they fit"
    )
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(type(self))
        for name in ("scope", "budget", "grown", "removed", "network", "control"):
            choices = typing.get_args(kinds[name])
            if getattr(self, name) not in choices:
                raise unknown(f"{name} of method '{self.name}'", str(getattr(self, name)), choices)
        if self.score is None and self.prunes:
            raise UsageError(f"Method '{self.name}' prunes but has no scorer; set method.score.")
        if self.scope == PER_TASK and self.arbiter is None:
            raise UsageError(
                f"Method '{self.name}' has a voter for each task, and nothing that decides between them; set "
                "method.arbiter, to or, majority, and, or at-least:2 for example."
            )
        if self.budget == "finetune" and self.start.train_from != "trained":
            raise UsageError(f"Method '{self.name}' fine-tunes weights that were never trained.")
        if self.rounds < 1:
            raise UsageError(f"rounds of method '{self.name}' is {self.rounds}; it must be 1 or more.")
        if self.rounds > 1 and isinstance(self.calibration, FixedRatio):
            raise UsageError(f"Method '{self.name}' has a fixed keep ratio, so that it cannot prune in rounds.")
        if self.rounds > 1 and getattr(self.score, "init", "own") != "own":
            raise UsageError(
                f"Method '{self.name}' scores freshly drawn weights, which know nothing of earlier rounds; set "
                "method.score.init=own for more than one of method.rounds."
            )
        if self.network == "small" and self.prunes:
            raise UsageError(f"Method '{self.name}' prunes, so its network cannot be small instead.")

    @property
    def prunes(self) -> bool:
        """Return whether the method removes anything at all."""
        return not isinstance(self.schedule, Never)

    @property
    def sparse(self) -> bool:
        """Return whether its network has fewer weights than the dataset's."""
        return self.prunes or self.network == "small"

    @property
    def pretrained(self) -> bool:
        """Return whether pruning starts from trained weights."""
        return self.start.pretrained
