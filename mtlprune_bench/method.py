"""Methods: a pruning method is a value, one choice on each axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal
from typing import Protocol as Interface

from torch import Tensor

from mtlprune_bench.allocation import Global, Group, Shapes
from mtlprune_bench.arbiters import OR
from mtlprune_bench.errors import UsageError
from mtlprune_bench.schedules import Never, Update
from mtlprune_bench.scorers import Scores, Scoring

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

    def plan(self, sparsity: float, steps: int) -> tuple[Update, ...]: ...  # noqa: D102


@dataclass(frozen=True)
class Start:
    """Which weights are scored, and from which training goes on."""

    score_on: Weights = field(metadata={"help": "weights that are scored: init or trained"})
    train_from: Weights = field(metadata={"help": "weights that training goes on from: init or trained"})

    @property
    def name(self) -> str:
        """Return both in words."""
        return f"score {self.score_on}, train from {self.train_from}"

    @property
    def pretrained(self) -> bool:
        """Return whether anything of a trained network is used."""
        return "trained" in (self.score_on, self.train_from)


AT_INIT = Start("init", "init")
TRAINED = Start("trained", "trained")
REWOUND = Start("trained", "init")

JOINT = "joint"
PER_TASK = "per-task"


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


def axis(default: Any, help: str, kind: str = "") -> Any:
    """Return a method's field: its help text, and the kind of registered thing that its value is."""
    return field(default=default, metadata={"help": help, "kind": kind})


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
    scope: str = axis(JOINT, "joint: one voter, on the weighted total loss; per-task: one voter a task")
    arbiter: Callable[[Tensor], Tensor] = axis(OR, "what becomes of weights that voters disagree on", "arbiters")
    allocation: Allocation = axis(Global(), "how kept weights are shared out over layers", "allocations")
    schedule: Schedule = axis(MISSING, "when the masks are made", "schedules")
    calibration: Exact | FixedRatio = axis(Exact(), "exact sparsity, or a fixed keep ratio for each voter")
    start: Start = axis(AT_INIT, "which weights are scored, and from which training goes on")
    budget: Literal["train", "finetune"] = axis("train", "the recipe that pruned networks are trained by")
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.scope not in (JOINT, PER_TASK):
            raise UsageError(f"Scope '{self.scope}' of method '{self.name}' is neither joint nor per-task.")
        if self.budget not in ("train", "finetune"):
            raise UsageError(f"Budget '{self.budget}' of method '{self.name}' is neither train nor finetune.")
        if self.score is None and self.prunes:
            raise UsageError(f"Method '{self.name}' prunes but has no scorer; set method.score.")
        if self.budget == "finetune" and self.start.train_from != "trained":
            raise UsageError(f"Method '{self.name}' fine-tunes weights that were never trained.")

    @property
    def prunes(self) -> bool:
        """Return whether the method removes anything at all."""
        return not isinstance(self.schedule, Never)
