"""mtlprune-bench: prune multitask networks with every published method, and compare them fairly.

The names below are the public ones, and the only ones that plugins import. They are resolved when first
used, so that importing the package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtlprune_bench.adapters import DataRequest, Dataset, Files, Labelling, Model, Sample, Samples, Splits
    from mtlprune_bench.api.data import as_dataset
    from mtlprune_bench.api.masks import Masks
    from mtlprune_bench.api.oneshot import prune
    from mtlprune_bench.api.runs import Results, RunResult, load_results, run, table
    from mtlprune_bench.data.formats import as_tensor, naming, read_npy, read_png, write_npy, write_png
    from mtlprune_bench.data.indexes import inside, numbered, read_index
    from mtlprune_bench.data.layouts import Column, Entry, Index, Layout, Place
    from mtlprune_bench.errors import DataError, MtlbenchError, PluginError, UsageError
    from mtlprune_bench.files import checksum, locked, set_aside, write_atomic, write_text
    from mtlprune_bench.host.hookspecs import Register, hookimpl
    from mtlprune_bench.protocols import DISPARSE, STANDARD, Protocol
    from mtlprune_bench.pruning.allocation import Erk, Global, Group, Uniform
    from mtlprune_bench.pruning.arbiters import AND, MAJORITY, OR, AtLeast, Majority, Quorum, Unanimous
    from mtlprune_bench.pruning.gradients import Voter, untouched, voter_gradients
    from mtlprune_bench.pruning.learned import AdaptiveWeights, LearnedMethod
    from mtlprune_bench.pruning.method import (
        AT_INIT,
        JOINT,
        PER_TASK,
        REWOUND,
        TRAINED,
        Exact,
        FixedRatio,
        Method,
        Start,
    )
    from mtlprune_bench.pruning.schedules import Update, cubic, every, levels, never, once
    from mtlprune_bench.pruning.scorers import (
        Scores,
        Scoring,
        gradient,
        gradient_flow,
        magnitude,
        noise,
        saliency,
    )
    from mtlprune_bench.recipe import Recipe
    from mtlprune_bench.runs.jobs import Job, Outcome, Runner, Slot, Work, lost
    from mtlprune_bench.seeds import derive
    from mtlprune_bench.tasks import Labels, Metric, Task
    from mtlprune_bench.training.metrics import (
        Angles,
        Confusion,
        CrossEntropy,
        Deviation,
        Ratios,
        absolute_error,
        absolute_loss,
        cross_entropy,
        fraction_delta,
        fraction_within,
        mean_iou,
        mean_value,
        median_angle,
        relative_error,
        weighted_mean,
    )

__version__ = "0.1.0"

_HOME = {
    "api.data": ["as_dataset"],
    "api.masks": ["Masks"],
    "api.oneshot": ["prune"],
    "api.runs": ["Results", "RunResult", "load_results", "run", "table"],
    "adapters": ["DataRequest", "Dataset", "Files", "Labelling", "Model", "Sample", "Samples", "Splits"],
    "pruning.allocation": ["Erk", "Global", "Group", "Uniform"],
    "pruning.arbiters": ["AND", "MAJORITY", "OR", "AtLeast", "Majority", "Quorum", "Unanimous"],
    "errors": ["DataError", "MtlbenchError", "PluginError", "UsageError"],
    "files": ["checksum", "locked", "set_aside", "write_atomic", "write_text"],
    "data.formats": ["as_tensor", "naming", "read_npy", "read_png", "write_npy", "write_png"],
    "pruning.gradients": ["Voter", "untouched", "voter_gradients"],
    "host.hookspecs": ["Register", "hookimpl"],
    "data.indexes": ["inside", "numbered", "read_index"],
    "data.layouts": ["Column", "Entry", "Index", "Layout", "Place"],
    "runs.jobs": ["Job", "Outcome", "Runner", "Slot", "Work", "lost"],
    "pruning.learned": ["AdaptiveWeights", "LearnedMethod"],
    "pruning.method": [
        "AT_INIT",
        "JOINT",
        "PER_TASK",
        "REWOUND",
        "TRAINED",
        "Exact",
        "FixedRatio",
        "Method",
        "Start",
    ],
    "training.metrics": [
        "Angles",
        "Confusion",
        "CrossEntropy",
        "Deviation",
        "Ratios",
        "absolute_error",
        "absolute_loss",
        "cross_entropy",
        "fraction_delta",
        "fraction_within",
        "mean_iou",
        "mean_value",
        "median_angle",
        "relative_error",
        "weighted_mean",
    ],
    "protocols": ["DISPARSE", "STANDARD", "Protocol"],
    "recipe": ["Recipe"],
    "pruning.schedules": ["Update", "cubic", "every", "levels", "never", "once"],
    "pruning.scorers": ["Scores", "Scoring", "gradient", "gradient_flow", "magnitude", "noise", "saliency"],
    "seeds": ["derive"],
    "tasks": ["Labels", "Metric", "Task"],
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}
__all__ = ["__version__", *sorted(_MODULE)]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'mtlprune_bench' has no attribute '{name}'")
    return getattr(importlib.import_module(f"mtlprune_bench.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
