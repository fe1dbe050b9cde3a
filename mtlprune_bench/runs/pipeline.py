"""The pipeline: what a run does to its network before it is measured, for each type of method."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from mtlprune_bench.pruning.learned import FROM_TRAINED, LearnedMethod
from mtlprune_bench.pruning.masks import Masks
from mtlprune_bench.pruning.method import Method
from mtlprune_bench.pruning.prune import make_masks, scores_of
from mtlprune_bench.pruning.regrow import regrow_masks
from mtlprune_bench.pruning.schedules import Span, Update, spans
from mtlprune_bench.pruning.scorers import Scores
from mtlprune_bench.pruning.thresholds import Learner, groups
from mtlprune_bench.runs.costs import reset_peak_memory
from mtlprune_bench.runs.stages import Stages
from mtlprune_bench.seeds import derive
from mtlprune_bench.tasks import Batch
from mtlprune_bench.training.checkpoint import load_masks, read_weights, save_masks
from mtlprune_bench.training.state import load_weights, weights_of

START_MASKS = "start-masks.safetensors"
TRAIN = "training"


def prepare_network(stages: Stages, model: nn.Module) -> Masks:
    """Bring `model`, which has its initial weights, to its final ones; return its masks, empty if dense."""
    method = stages.config.method
    if isinstance(method, LearnedMethod):
        return _learn(stages, method, model)
    if not stages.experiment.plan:
        stages.dense(model)
        return {}
    masks = stages.load(stages.folder, model)
    return _prune(stages, method, model) if masks is None else masks


def share_scores(stages: Stages, model: nn.Module) -> None:
    """Keep the scores of `model`, which has its initial weights, that runs at several sparsities begin with."""
    method = stages.config.method
    assert isinstance(method, Method), "a learned method has no scores"

    def make() -> Scores:
        if method.start.pretrained:
            stages.dense(model)
        return scores_of(method, method.score, stages.scoring(model, scoring_at(0)))

    stages.keep_scores(make)


def scoring_at(step: int) -> str:
    """Return what the batches and the seed of the scoring before `step` depend on."""
    return f"score at {step}"


def _prune(stages: Stages, method: Method, model: nn.Module) -> Masks:
    """Score, prune and train, as often as the plan has trainings."""
    rewound = _rewound(stages, model) if method.start.rewinds else {}
    if method.start.pretrained:
        stages.dense(model)
    masks: Masks = {}
    trainings = spans(stages.experiment.plan, stages.config.recipe.steps)
    for number, span in enumerate(trainings, 1):
        folder, name = stages.folder, TRAIN
        if number < len(trainings):
            name = f"round {number} of {len(trainings)}"
            folder = stages.folder / f"round-{number}"
        finished = stages.load(folder, model)
        if finished is None:
            masks = _start_masks(stages, model, folder, span, masks)
            if rewound:
                load_weights(model, rewound)
            if number == len(trainings):
                masks = _control(stages, method, model, masks)
            finished = _train_span(stages, method, model, folder, name, span, masks)
        masks = finished
    return masks


def _rewound(stages: Stages, model: nn.Module) -> dict[str, Tensor]:
    """Return the weights that training goes back to, of a model that has its initial ones."""
    step = stages.experiment.rewind
    initial = {name: tensor.detach().clone() for name, tensor in weights_of(model).items()}
    if not step:
        return initial
    stages.dense(model, step)
    late = {name: tensor.detach().clone() for name, tensor in weights_of(model).items()}
    load_weights(model, initial)
    return late


def _start_masks(stages: Stages, model: nn.Module, folder: Path, span: Span, masks: Masks) -> Masks:
    """Return the masks before a training's first step; scores are computed once, however often it is resumed."""
    if span.first is None:
        return masks
    kept = stages.processes.from_first(lambda: load_masks(folder / START_MASKS))
    if kept is None:
        since = time.monotonic()
        reset_peak_memory(stages.device)
        method = stages.config.method
        assert isinstance(method, Method), "only a Method has a plan"
        scoring = stages.scoring(model, scoring_at(span.start))
        scores = stages.kept_scores(folder) if span.start == 0 else None
        kept = stages.processes.agree(make_masks(method, scoring, span.first.sparsity, masks, scores))
        stages.keep_cost(folder, START_MASKS, time.monotonic() - since)
        if stages.processes.first:
            save_masks(folder / START_MASKS, kept)
    return {name: mask.to(stages.device) for name, mask in kept.items()}


def _control(stages: Stages, method: Method, model: nn.Module, masks: Masks) -> Masks:
    """Return the masks of a control experiment; it may give `model` other weights, too."""
    if method.control == "redrawn":
        other = stages.experiment.build_model(stages.device, "redrawn")
        load_weights(model, weights_of(other))
    if method.control != "shuffled":
        return masks
    generator = torch.Generator().manual_seed(derive(stages.config.seed, "shuffled"))
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=generator).to(mask.device)].view_as(mask)
        for name, mask in masks.items()
    }


def _train_span(
    stages: Stages, method: Method, model: nn.Module, folder: Path, name: str, span: Span, masks: Masks
) -> Masks:
    """Make one training of the plan, with the updates that come after its start masks."""

    def remake(update: Update, current: Masks, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        step = span.start + update.step
        if update.regrow is None:
            scoring = stages.scoring(model, scoring_at(step), batch)
            masks = make_masks(method, scoring, update.sparsity, None if stale else current)
            return stages.processes.agree(masks), {}
        regrown = regrow_masks(method, stages.scoring(model, f"regrow at {step}", batch), update, current)
        fresh = regrown.grown
        if method.grown == "kept":
            fresh = {name: grown & ~current[name] for name, grown in fresh.items()}
        return stages.processes.agree(regrown.masks), stages.processes.agree(fresh)

    stale = method.removed == "stale"
    return stages.train(
        folder,
        name,
        model,
        dataclasses.replace(stages.config.recipe, steps=span.steps),
        masks,
        first=stages.experiment.rewind,
        plan=span.later,
        update=remake,
        stale=stale,
    )


def _learn(stages: Stages, method: LearnedMethod, model: nn.Module) -> Masks:
    """Train a network whose masks are trained with its weights."""
    finished = stages.load(stages.folder, model)
    if finished is not None:
        return finished
    if method.checkpoint == FROM_TRAINED:
        stages.dense(model)
    elif method.checkpoint:
        load_weights(model, read_weights(Path(method.checkpoint)))
    recipe = stages.config.recipe
    chosen = groups(method.group_by, stages.components)
    learner = Learner(model, method, chosen, stages.experiment.objective, recipe, stages.config.sparsity)
    return stages.train(stages.folder, TRAIN, model, recipe, {}, learner=learner)
