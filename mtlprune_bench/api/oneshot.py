"""Pruning alone: masks for any network, for those who keep their own training loop."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mtlprune_bench.api.masks import Masks, is_masked
from mtlprune_bench.errors import UsageError
from mtlprune_bench.host.registry import Registry, load_registry
from mtlprune_bench.pruning.components import Components, discover_by, prunable
from mtlprune_bench.pruning.gradients import untouched
from mtlprune_bench.pruning.learned import LearnedMethod
from mtlprune_bench.pruning.method import Method
from mtlprune_bench.pruning.prune import make_masks, voters_of
from mtlprune_bench.pruning.scorers import Scoring
from mtlprune_bench.recipe import Recipe
from mtlprune_bench.runs.experiment import configure_method
from mtlprune_bench.runs.pipeline import scoring_at
from mtlprune_bench.runs.request import nested_settings
from mtlprune_bench.seeds import derive

Losses = Callable[..., Mapping[str, Tensor]]


def prune(
    model: nn.Module,
    losses: Losses,
    batches: Iterable[Any],
    method: str | Method | LearnedMethod,
    sparsity: float = 0.9,
    *,
    seed: int = 0,
    loss_weights: Mapping[str, float] | None = None,
    settings: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
) -> Masks:
    """Return the masks by which `method` brings `model` to exactly `sparsity`, in [0, 1); `model` stays as it is.

    `losses(batch)` is a forward pass: each task's loss on a batch, a scalar that depends on the weights, by task.
    Which task uses which weight is found by autograd. `batches` are whatever `losses` takes; as many as the method
    scores on are read. `loss_weights` are the factors of the losses in their sum (default: 1 each), `settings` as
    of --set, such as {"method.score.batches": 10}. The weights scored are those that `model` has now: give a
    trained one to methods for trained networks. Frozen weights are left alone.

    Raises UsageError for unknown names and settings, for methods that prune while they train, which `run` carries
    out, for too few batches, and where the losses depend on no weight.
    """
    registry = load_registry(plugins)
    chosen = _configured(method, settings or {}, registry)
    if not 0 <= sparsity < 1:
        raise UsageError(f"Sparsity {sparsity} is not in [0, 1): it is the fraction of weights removed.")
    _check_acts_once(chosen, sparsity)
    if masked := [path for path, layer in model.named_modules() if is_masked(layer)]:
        raise UsageError(f"Layer '{masked[0]}' has a mask already; take it out first, with masks.remove(model).")
    kept = _Kept(batches, chosen.name)
    forward = _Forward(losses)
    weights = {name: weight for name, weight in prunable(model).items() if weight.requires_grad}
    components = _components(model, forward, kept(1)[0], weights)
    factors = dict(loss_weights or dict.fromkeys(components.tasks, 1.0))
    if factors.keys() != set(components.tasks):
        raise UsageError(f"loss_weights are of {sorted(factors)}, but losses(batch) are of {[*components.tasks]}.")
    scoring = Scoring(
        model=model,
        weights={name: weight for name, weight in weights.items() if name in components.users},
        voters=voters_of(chosen.scope, factors, components),
        losses=forward,
        batches=kept,
        seed=derive(seed, scoring_at(0)),
    )
    return Masks(make_masks(chosen, scoring, sparsity), components.by_name())


def _configured(method: str | Method | LearnedMethod, settings: Mapping[str, Any], registry: Registry) -> Method:
    """Return the method that is meant. Raises UsageError where it learns its masks."""
    sections = nested_settings(settings)
    if others := sorted(sections.keys() - {"method"}):
        raise UsageError(f"prune() has settings of the method only, and none of '{others[0]}': method.NAME.")
    found = registry.get("methods", method) if isinstance(method, str) else method
    if isinstance(found, LearnedMethod):
        raise UsageError(f"Method '{found.name}' learns its masks while it trains; run() carries it out.")
    configured = configure_method(found, sections.get("method", {}), registry)
    assert isinstance(configured, Method), "a Method stays one"
    return configured


def _check_acts_once(method: Method, sparsity: float) -> None:
    """Raise UsageError for a method of which masks made at once are not all."""
    name = method.name
    if not method.prunes or method.network != "multitask" or method.control != "none":
        raise UsageError(f"Method '{name}' is a baseline or a control, and makes no masks; run() carries it out.")
    plan = method.schedule.plan(sparsity, Recipe())
    if len(plan) != 1 or plan[0].step or plan[0].regrow is not None:
        raise UsageError(
            f"Method '{name}' prunes while it trains, by schedule '{method.schedule.name}'; run() carries it out. "
            'For its masks before training alone: settings={"method.schedule": "once"}.'
        )


def _components(
    model: nn.Module, forward: _Forward, batch: Any, weights: Mapping[str, nn.Parameter]
) -> Components:
    """Return which task's loss reaches which weight. Raises UsageError where none reaches any."""
    with untouched(model):
        components = discover_by(model, lambda: forward(batch), weights) if weights else None
    if components is None or not components.users:
        raise UsageError("The losses depend on no weight of a convolution or a linear layer of the model.")
    return components


class _Forward:
    """A user's losses, called as scorers call theirs."""

    def __init__(self, losses: Losses) -> None:
        self._losses = losses

    def __call__(self, batch: Any, temperature: float = 1.0) -> dict[str, Tensor]:
        own = batch.own if isinstance(batch, _Piece) else batch
        if temperature != 1 and len(inspect.signature(self._losses).parameters) < 2:
            raise UsageError(
                "The method divides logits by a temperature: let losses(batch, temperature) do so, or leave it "
                'out, with settings={"method.score.temperature": 1}.'
            )
        made = self._losses(own) if temperature == 1 else self._losses(own, temperature)
        if not isinstance(made, Mapping) or any(getattr(loss, "shape", None) != () for loss in made.values()):
            raise UsageError("losses(batch) must return a dict with the loss of each task, a scalar tensor.")
        return dict(made)


class _Kept:
    """The first so many of a user's batches, each read once, and the same ones every time."""

    def __init__(self, batches: Iterable[Any], method: str) -> None:
        self._rest, self._method = iter(batches), method
        self._read: list[Any] = []

    def __call__(self, count: int) -> list[Any]:
        while len(self._read) < count:
            try:
                batch = next(self._rest)
            except StopIteration:
                raise UsageError(
                    f"Method '{self._method}' scores on {count} batches, and there are {len(self._read)}. Give "
                    f'more, or settings={{"method.score.batches": {max(len(self._read), 1)}}}.'
                ) from None
            self._read.append(batch if hasattr(batch, "parts") else _Piece(batch))
        return self._read[:count]


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A user's batch, or a part of it, with what scorers ask of one."""

    own: Any

    @property
    def images(self) -> Tensor:
        """Return the first tensor in it, which stands for what the network gets."""
        tensors = _tensors(self.own)
        if not tensors:
            raise UsageError("The method looks at the images of a batch, and there is no tensor in yours.")
        return tensors[0]

    def parts(self, count: int) -> list[_Piece]:
        """Return it in `count` pieces: all its tensors are cut alike, along their first dimension."""
        if count == 1:
            return [self]
        tensors = _tensors(self.own)
        lengths = {len(tensor) for tensor in tensors if tensor.ndim}
        if len(lengths) != 1 or min(lengths) < count:
            raise UsageError(
                f"The method cuts each batch into {count} parts, for which its tensors need one length, at least "
                f"that; they have {sorted(lengths) or 'none'}."
            )
        return [_Piece(_part(self.own, number, count)) for number in range(count)]


def _tensors(batch: Any) -> list[Tensor]:
    """Return the tensors in a batch: itself, or those in its lists, tuples and mappings."""
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    return [tensor for item in batch for tensor in _tensors(item)] if isinstance(batch, list | tuple) else []


def _part(batch: Any, number: int, count: int) -> Any:
    """Return one of `count` parts of a batch, in the form of the whole."""
    if isinstance(batch, Tensor):
        return batch.tensor_split(count)[number] if batch.ndim else batch
    if isinstance(batch, Mapping):
        return {key: _part(item, number, count) for key, item in batch.items()}
    if not isinstance(batch, list | tuple):
        return batch
    parts = [_part(item, number, count) for item in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
