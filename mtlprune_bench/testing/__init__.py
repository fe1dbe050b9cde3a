"""The contract: what a pruning method has to pass before its numbers mean anything.

Each check in CHECKS is called with the name of a method, the registry that has it, a folder that is empty at
first, and, if need be, settings as of a Request: `{"method": {"score": {"batches": 2}}}`. It raises
AssertionError with what is wrong and what to do, and asks nothing of scorers or plans where a method has none.
Networks and images are tiny, so that a run takes a fraction of a second; checks that are given the same folder
share runs. docs/testing.md shows how a plugin's author calls them.
"""

from __future__ import annotations

from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.testing.case import ASKED
from mtlprune_bench.testing.contract import (
    CHECKS,
    SPARSITIES,
    check_arbiters,
    check_costs,
    check_observers,
    check_plan,
    check_resume,
    check_scores,
    check_seeds,
    check_sparsity,
    check_store,
    check_trace,
)
from mtlprune_bench.testing.tiny import TINY, register_tiny

__all__ = [
    "ASKED",
    "CHECKS",
    "SPARSITIES",
    "TINY",
    "check_arbiters",
    "check_costs",
    "check_observers",
    "check_plan",
    "check_resume",
    "check_scores",
    "check_seeds",
    "check_sparsity",
    "check_store",
    "check_trace",
    "load_registry",
    "register_tiny",
]
