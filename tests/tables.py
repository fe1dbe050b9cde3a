"""Rows of results, as a store returns them, for tests of tables."""

from __future__ import annotations

import pandas as pd

from mtlprune_bench.store import COLUMNS

ROW = {
    "run": "run",
    "status": "finished",
    "reason": "",
    "method": "snip",
    "settings": "",
    "pretrained": False,
    "paradigm": "static",
    "dataset": "toy",
    "data": "patches",
    "stand_in": False,
    "protocol": "standard",
    "model": "net",
    "recipe": "30 steps",
    "finetune": "",
    "seed": 0,
    "sparsity": 0.5,
    "step": 30,
    "split": "test",
    "task": "seg",
    "component": "",
    "metric": "miou",
    "value": 0.5,
    "unit": "fraction",
    "higher_is_better": True,
}

ERROR = {"task": "normals", "metric": "mean_angle", "unit": "degree", "higher_is_better": False}
FAILURE = {"metric": "", "task": "", "split": "", "unit": "", "value": None, "higher_is_better": None}


def frame(*changes):
    """Return the rows that differ from ROW by each of `changes`."""
    rows = [ROW | change for change in changes]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
