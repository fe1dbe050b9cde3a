"""Plans in print: the stages of a run, the updates of its masks, and what they cost."""

from __future__ import annotations

from mtlprune_bench.catalogue import Table
from mtlprune_bench.experiment import Experiment
from mtlprune_bench.method import JOINT
from mtlprune_bench.run import WEIGHTS
from mtlprune_bench.store import Store


def plan_tables(experiment: Experiment, store: Store) -> list[Table]:
    """Return the stages of `experiment`, with steps and passes, and its updates."""
    config, plan = experiment.config, experiment.plan
    method = config.method
    stages = []
    if method.start.pretrained or not plan:
        done = (store.stage_folder(config.dense_key) / WEIGHTS).exists()
        stages.append(_training("dense training", config.train.steps, done, "shared by all runs with this seed"))
    voters = 1 if method.scope == JOINT else len(experiment.objective.tasks)
    for update in plan if method.score else ():
        forward, backward = method.score.passes(voters)  # type: ignore[union-attr]
        detail = f"{voters} voter{'s' if voters > 1 else ''}, arbiter {getattr(method.arbiter, 'name', '')}"
        stages.append([f"prune at step {update.step}", "0", str(forward), str(backward), "", detail])
    if plan:
        done = (store.run_folder(config.run_id) / WEIGHTS).exists()
        recipe = config.recipe
        stages.append(_training(method.budget, recipe.steps, done, f"from {method.start.train_from} weights"))
    steps, forward, backward = (str(sum(int(stage[column]) for stage in stages)) for column in (1, 2, 3))
    stages.append(["total", steps, forward, backward, "", ""])
    updates = [[str(update.step), f"{update.sparsity:g}", f"{1 - update.sparsity:g}"] for update in plan]
    return [
        (config.run_id, stages, ["stage", "steps", "forward", "backward", "done", ""]),
        ("updates of the masks", updates, ["before step", "sparsity", "density"]),
    ]


def _training(name: str, steps: int, done: bool, detail: str) -> list[str]:
    return [name, str(steps), str(steps), str(steps), "yes" if done else "no", detail]
