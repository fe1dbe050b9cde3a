"""Plans in print: the parts of a run, the updates of its masks, and what they cost."""

from __future__ import annotations

from mtlprune_bench.runs.catalogue import Table
from mtlprune_bench.runs.costs import Cost, parts
from mtlprune_bench.runs.experiment import Experiment
from mtlprune_bench.store import Store
from mtlprune_bench.training.checkpoint import WEIGHTS


def plan_tables(experiment: Experiment, store: Store) -> list[Table]:
    """Return the parts of `experiment`, with steps and passes, and its updates."""
    config = experiment.config
    done = []
    if experiment.needs_dense and (store.stage_folder(config.dense_key) / WEIGHTS).exists():
        done.append("dense training")
    if experiment.plan and (store.run_folder(config.run_id) / WEIGHTS).exists():
        done.append("all of it")
    found = parts(experiment)
    rows = [[part.name, *_numbers(part.cost), part.detail] for part in found]
    total = sum((part.cost for part in found), Cost())
    rows.append(["total", *_numbers(total), f"done: {', '.join(done)}" if done else ""])
    updates = [
        [
            str(update.step),
            f"{update.sparsity:g}",
            f"{1 - update.sparsity:g}",
            "" if update.regrow is None else f"{update.regrow:.4f}",
            "yes" if update.restart else "",
        ]
        for update in experiment.plan
    ]
    headings = ["before step", "sparsity", "density", "regrown", "training begins anew"]
    return [
        (config.run_id, rows, ["part", "steps", "forward", "backward", ""]),
        ("updates of the masks", updates, headings),
    ]


def _numbers(cost: Cost) -> list[str]:
    return [str(cost.steps), str(cost.forward), str(cost.backward)]
