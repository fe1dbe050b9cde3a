"""The contracts: what a plugin has to pass before its numbers mean anything.

`check_plugin("my_plugin.py")` makes every check of all that a plugin registers, `check_method("my-method")` those
of one method. Each check of CHECKS, those of methods, and of CONTRACTS, those of every kind, can be called by
itself: with a name, the registry that has it, a folder that is empty at first, and, if need be, settings as of a
Request, `{"method": {"score": {"batches": 2}}}`. It raises AssertionError with what is wrong and what to do, and
returns why it asks nothing, where there is nothing to ask. Networks and images are tiny, so that a run takes a
fraction of a second; checks that are given the same folder share runs. docs/testing.md shows how a plugin's author
calls them.
"""

from __future__ import annotations

from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.testing.case import ASKED, SPARSITIES
from mtlprune_bench.testing.checks import CONTRACTS, METHODS
from mtlprune_bench.testing.datasets import check_learning, check_opening, check_samples, check_splits
from mtlprune_bench.testing.masking import (
    check_arbiters,
    check_groups,
    check_merging,
    check_order,
    check_plan,
    check_scale,
    check_scores,
    check_trace,
)
from mtlprune_bench.testing.models import check_outputs, check_scaling, check_state, check_weights
from mtlprune_bench.testing.observers import check_inert
from mtlprune_bench.testing.plugins import Subject, Verdict, check_method, check_plugin, subjects, verdicts
from mtlprune_bench.testing.runs import (
    check_costs,
    check_observers,
    check_resume,
    check_seeds,
    check_sparsity,
    check_store,
)
from mtlprune_bench.testing.tiny import TINY, register_tiny

CHECKS = CONTRACTS[METHODS]
"""The checks of methods, for `pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)`."""

__all__ = [
    "ASKED",
    "CHECKS",
    "CONTRACTS",
    "SPARSITIES",
    "TINY",
    "Subject",
    "Verdict",
    "check_arbiters",
    "check_costs",
    "check_groups",
    "check_inert",
    "check_learning",
    "check_merging",
    "check_method",
    "check_observers",
    "check_opening",
    "check_order",
    "check_outputs",
    "check_plan",
    "check_plugin",
    "check_resume",
    "check_samples",
    "check_scale",
    "check_scaling",
    "check_scores",
    "check_seeds",
    "check_sparsity",
    "check_splits",
    "check_state",
    "check_store",
    "check_trace",
    "check_weights",
    "load_registry",
    "register_tiny",
    "subjects",
    "verdicts",
]
