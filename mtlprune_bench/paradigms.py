"""Paradigms: what papers group methods by, told from what a run is and never from its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BASELINE = "baseline"
STATIC = "static"
DYNAMIC = "dynamic"
PRETRAINED = "pre-trained"
LEARNED = "learned"

PARADIGMS = (BASELINE, STATIC, DYNAMIC, PRETRAINED, LEARNED)
"""In the order of tables: nothing is pruned; masks are made before training and stay; they change while a network
trains from its initial weights; a trained network is pruned and trained on; masks are trained with the weights."""


def paradigm(method: Mapping[str, Any], updates: Sequence[Mapping[str, Any]]) -> str:
    """Return which of PARADIGMS a run is of, from `method` in its config.json and `updates` in its plan.json.

    The groups of DiSparse's tables (https://arxiv.org/abs/2206.04662), where a lottery ticket is static: its masks
    come from a trained network, its weights do not.
    """
    if method.get("is") == "LearnedMethod":
        return LEARNED
    if not updates:
        return BASELINE
    if method.get("start", {}).get("train_from") == "trained":
        return PRETRAINED
    return DYNAMIC if any(update["step"] and not update["restart"] for update in updates) else STATIC
