"""Sources of masks to look at: those that runs have stored, and those that tasks would have before training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mtlprune_bench.analysis.overlap import Overlap, Trunk, pair_overlaps, task_overlaps, trunk_of
from mtlprune_bench.errors import UsageError
from mtlprune_bench.host.registry import Registry
from mtlprune_bench.pruning.allocation import Group
from mtlprune_bench.pruning.components import Components, discover, prunable
from mtlprune_bench.pruning.masks import Masks
from mtlprune_bench.pruning.method import PER_TASK, Method
from mtlprune_bench.pruning.prune import scores_of, settle
from mtlprune_bench.pruning.scorers import Scores
from mtlprune_bench.runs.config import Engine, override
from mtlprune_bench.runs.environment import resolve_device
from mtlprune_bench.runs.experiment import Experiment
from mtlprune_bench.runs.pipeline import scoring_at
from mtlprune_bench.runs.stages import DISCOVERY_SIZE, Stages
from mtlprune_bench.store import CONFIG, WHOLE, Store, read_json, read_rows
from mtlprune_bench.training.checkpoint import MASKS, SCORES, load_masks, load_scores
from mtlprune_bench.training.networks import MULTITASK, build_network

SHARED = "shared"


@dataclass(frozen=True)
class RunMasks:
    """The final masks of a stored run, and which tasks use which weight; `label` tells it from others in words."""

    run: str
    label: str
    masks: Masks
    components: Components


@dataclass(frozen=True)
class TaskMasks:
    """What each task would keep of the weights that it uses, before the tasks' masks are merged.

    `label` tells it from others in words, with the data; `overlaps` say by weight how far its users agree, and
    `pairs` how far two tasks do on all that they share. `notes` are what a reader has to know.
    """

    run: str
    label: str
    components: Components
    overlaps: Mapping[str, Overlap]
    pairs: Mapping[tuple[str, str], Overlap]
    trunk: Trunk
    notes: tuple[str, ...] = ()


def groups(components: Components) -> dict[str, tuple[str, ...]]:
    """Return the weights of the whole network, then of each component, by name."""
    return {WHOLE: tuple(components.users), **components.by_name()}


def stored_masks(folder: Path, registry: Registry) -> RunMasks:
    """Return the final masks of the run in `folder`.

    Its network is built once more, without memory for its weights, to find the components. Raises UsageError where
    the run has no masks, or the network is not the one that they are of.
    """
    masks = load_masks(folder / MASKS)
    if not masks:
        raise UsageError(
            f"Run {folder.name} has no masks: it is dense, or its last training has not ended. "
            f"mtlbench show {folder.name} says what there is."
        )
    images = torch.zeros(1, 3, DISCOVERY_SIZE, DISCOVERY_SIZE, device="meta")
    network = _network(folder, registry)
    shapes = {name: weight.shape for name, weight in prunable(network).items()}
    if any(mask.shape != shapes.get(name) for name, mask in masks.items()):
        raise UsageError(
            f"The masks of run {folder.name} are not those of the network that its model is now built as; load "
            "the plugins and install the versions that environment.json in its folder names."
        )
    found = discover(network, images)
    users = {name: tasks for name, tasks in found.users.items() if name in masks}
    return RunMasks(folder.name, _label_of(folder), masks, Components(users, found.tasks))


def _label_of(folder: Path) -> str:
    """Return a run's id, its settings where it has some, and whether its data stood in for others."""
    row = next(iter(read_rows(folder) or ()), {"settings": "", "stand_in": False})
    settings = f" ({row['settings']})" if row["settings"] else ""
    return f"{folder.name}{settings}" + (" STAND-IN" if row["stand_in"] else "")


def _network(folder: Path, registry: Registry) -> torch.nn.Module:
    """Return the network of a stored run on the meta device. Raises UsageError."""
    config = read_json(folder / CONFIG)
    model = registry.get("models", config["model"])
    changed = {name: value for name, value in config["model_settings"].items() if name != "is"}
    # What a configuration leaves out is at its class's default, which the model's own settings need not be.
    fields = {item.name: item.default for item in dataclasses.fields(model.settings)}
    defaults = {name: value for name, value in fields.items() if value is not dataclasses.MISSING}
    settings = override(dataclasses.replace(model.settings, **defaults), changed, "model")
    channels = {}
    for labels in config["labels"]:
        own = registry.get("tasks", labels["task"]).channels
        channels[labels["task"]] = labels["classes"] if own is None else own
    with torch.device("meta"):
        kind = config["method"].get("network", MULTITASK)
        return build_network(model, channels, settings, kind, config["sparsity"])


def check_same_network(runs: Sequence[RunMasks]) -> None:
    """Raise UsageError where the masks of `runs` are not of the same weights."""
    first = {name: mask.shape for name, mask in runs[0].masks.items()}
    for run in runs[1:]:
        if {name: mask.shape for name, mask in run.masks.items()} != first:
            raise UsageError(
                f"The masks of {runs[0].run} and {run.run} are of different networks, so that they cannot be "
                "compared; name runs with the same model and tasks."
            )


def masks_before_training(experiment: Experiment, store: Store, registry: Registry) -> TaskMasks:
    """Return each task's own masks at initialisation, at the sparsity of `experiment`, without running it.

    Scores are those that the run would begin with, or has begun with where `store` holds them. Each task keeps the
    best of the weights that it uses, as many as the sparsity leaves of them (DiSparse, section 4.8). Raises
    UsageError for a method that does not score initial weights for each task.
    """
    method = _fitting(experiment)
    engine = override(Engine(), experiment.request.settings.get("engine", {}), "engine")
    stages = Stages(experiment, store, registry, engine, resolve_device(engine.device))
    components = stages.components
    images = torch.zeros(1, 3, DISCOVERY_SIZE, DISCOVERY_SIZE, device="meta")
    shared = components.by_name().get(SHARED, ())
    scores = _scores(stages, method, store)
    target = experiment.config.sparsity
    masks = {task: own_masks(method, task, scores[task], target) for task in components.tasks}
    return TaskMasks(
        run=experiment.config.run_id,
        label=_label(experiment),
        components=components,
        overlaps=task_overlaps(masks, components),
        pairs=pair_overlaps(masks),
        trunk=trunk_of(experiment.outline(), images, shared),
        notes=tuple(note for task in masks for note in _ties(method, task, scores[task], target, masks[task])),
    )


def _fitting(experiment: Experiment) -> Method:
    """Return the method of `experiment`. Raises UsageError where tasks have no masks before training by it."""
    method = experiment.config.method
    if not isinstance(method, Method) or not experiment.plan or method.score is None:
        raise UsageError(f"Method '{method.name}' scores no weights before training; name one that does.")
    if len(experiment.objective.tasks) < 2:
        raise UsageError(f"Dataset '{experiment.config.dataset}' has one task, and nothing to compare it with.")
    if method.scope != PER_TASK:
        raise UsageError(
            f"Method '{method.name}' scores weights for all tasks together; add --scope per-task --arbiter or, so "
            "that each task has masks of its own."
        )
    if not any(method.score.passes(len(experiment.objective.tasks))):
        raise UsageError(
            f"Scorer '{method.score.name}' of method '{method.name}' does not look at tasks, so that all of them "
            "would keep the same; choose another method, or a scorer by --score."
        )
    if method.start.score_on != "init":
        raise UsageError(f"Method '{method.name}' scores trained weights; name one that scores initial ones.")
    if method.rounds > 1:
        raise UsageError(
            f"Method '{method.name}' makes masks in {method.rounds} rounds, in which tasks do not stay apart; add "
            "--set method.rounds=1."
        )
    return method


def _scores(stages: Stages, method: Method, store: Store) -> Scores:
    """Return the scores that the run begins with, from the store where they were kept."""
    key = stages.experiment.scores_key
    kept = load_scores(store.stage_folder(key) / SCORES) if key else None
    if kept is not None:
        return kept
    model = stages.experiment.build_model(stages.device)
    return scores_of(method, method.score, stages.scoring(model, scoring_at(0)))


def own_masks(method: Method, task: str, scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Return the masks of a task alone: the highest of its `scores`, shared out over layers as by `method`."""
    masks: dict[str, Tensor] = {}
    for group in _groups(method, scores, sparsity):
        masks |= settle(method, {task: dict(scores)}, group)
    return masks


def _groups(method: Method, scores: Mapping[str, Tensor], sparsity: float) -> tuple[Group, ...]:
    """Return which weights of a task compete with each other, and how many of them it keeps."""
    shapes = {name: tuple(score.shape) for name, score in scores.items()}
    # Rounded down, as the released code does; a little more, as 1 - 0.9 is a little below 0.1.
    kept = int((1 - sparsity) * sum(score.numel() for score in scores.values()) + 1e-6)
    return method.allocation.groups(shapes, kept)


def _ties(method: Method, task: str, scores: Mapping[str, Tensor], sparsity: float, masks: Masks) -> Iterator[str]:
    """Yield a note where a task keeps weights that score no higher than any other: tasks then agree by default."""
    tied = 0
    for group in _groups(method, scores, sparsity):
        lowest = min(float(scores[name].min()) for name in group.names)
        kept = sum(int((scores[name][masks[name]] == lowest).sum()) for name in group.names)
        dropped = any(not bool(masks[name].all()) for name in group.names)
        tied += kept if dropped else 0
    if tied:
        whole = sum(int(mask.sum()) for mask in masks.values())
        yield (
            f"{task} keeps {whole:,} weights, of which {tied:,} have the lowest score, as others that it drops: "
            "those that come first are kept, by all tasks alike. A higher sparsity or more batches part them."
        )


def _label(experiment: Experiment) -> str:
    """Return what was scored, in words: the data and whether they are the real ones, method, sparsity and seed."""
    config = experiment.config
    data = f"{config.dataset} STAND-IN" if experiment.opened.stand_in else config.dataset
    changes = f" ({experiment.changes})" if experiment.changes else ""
    return (
        f"{data}, {config.model}, {config.method.name}{changes}, sparsity {config.sparsity:g}, seed {config.seed}"
    )
