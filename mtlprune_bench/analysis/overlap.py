"""Analysis of masks: how far they agree, in which layer tasks part ways, and what branching there would cost."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtlprune_bench.pruning.components import Components, prunable
from mtlprune_bench.pruning.gradients import untouched
from mtlprune_bench.pruning.masks import Masks

LEVEL = 0.1
"""The IoU below which it stays from the layers on that the DiSparse paper names, for all of its three datasets."""


@dataclass(frozen=True)
class Overlap:
    """How far several masks of the same weights agree, in counts of weights, so that layers can be added up.

    `kept` is how many each mask keeps; `by_all` and `by_any` how many all of them and any of them keep. The last
    two are what these would be for random masks that keep as many in each layer.
    """

    weights: int
    kept: tuple[int, ...]
    by_all: int
    by_any: int
    by_all_chance: float
    by_any_chance: float

    @property
    def iou(self) -> float:
        """Return the intersection over the union, in [0, 1]; 1 where no mask keeps anything, as all agree."""
        return self.by_all / self.by_any if self.by_any else 1.0

    @property
    def chance(self) -> float:
        """Return the IoU of random masks as dense in each layer: a ratio of expected counts, in [0, 1]."""
        return self.by_all_chance / self.by_any_chance if self.by_any_chance else 1.0

    @property
    def densities(self) -> tuple[float, ...]:
        """Return the density of each mask, in [0, 1]."""
        return tuple(kept / self.weights for kept in self.kept)


def overlap(masks: Sequence[Tensor]) -> Overlap:
    """Return how far `masks`, two or more boolean tensors of one shape, agree."""
    count = masks[0].numel()
    kept = tuple(int(mask.sum()) for mask in masks)
    densities = [number / count for number in kept]
    return Overlap(
        weights=count,
        kept=kept,
        by_all=int(functools.reduce(operator.and_, masks).sum()),
        by_any=int(functools.reduce(operator.or_, masks).sum()),
        by_all_chance=count * math.prod(densities),
        by_any_chance=count * (1 - math.prod(1 - density for density in densities)),
    )


def added(overlaps: Iterable[Overlap]) -> Overlap:
    """Return the overlap of several layers together; of one or more, of the same masks."""
    parts = list(overlaps)
    return Overlap(
        weights=sum(part.weights for part in parts),
        kept=tuple(map(sum, zip(*(part.kept for part in parts), strict=True))),
        by_all=sum(part.by_all for part in parts),
        by_any=sum(part.by_any for part in parts),
        by_all_chance=sum(part.by_all_chance for part in parts),
        by_any_chance=sum(part.by_any_chance for part in parts),
    )


def task_overlaps(masks: Mapping[str, Masks], components: Components) -> dict[str, Overlap]:
    """Return how far the tasks that use a weight agree on it, by weight; one alone agrees with itself.

    `masks` holds each task's own masks of the weights that it uses.
    """
    return {name: overlap([masks[task][name] for task in users]) for name, users in components.users.items()}


def pair_overlaps(masks: Mapping[str, Masks]) -> dict[tuple[str, str], Overlap]:
    """Return how far each two of several sets of masks agree on all the weights that both have, if any."""
    pairs = {}
    for (first, one), (second, other) in itertools.combinations(masks.items(), 2):
        common = [name for name in one if name in other]
        if common:
            pairs[first, second] = added(overlap([one[name], other[name]]) for name in common)
    return pairs


def lasting_falls(ious: Sequence[float]) -> list[float]:
    """Return for each layer what part of the IoU before it is lost for good, in [0, 1].

    `ious` are in [0, 1], in the order of the layers. The fall at layer l is 1 - max(IoU[l:]) / IoU[l - 1]: only
    what no later layer regains counts. It is 0 at the first layer, after a layer with IoU 0, and where a later
    layer is higher.
    """
    falls = []
    for place in range(len(ious)):
        before = ious[place - 1] if place else 0.0
        falls.append(max(0.0, 1 - max(ious[place:]) / before) if before else 0.0)
    return falls


def watershed(ious: Sequence[float]) -> int | None:
    """Return the layer, counted from 0, with the largest fall of IoU that is never recovered.

    The first of several that are as large; None where nothing is lost for good. The name is that of DiSparse,
    section 4.8 (https://arxiv.org/abs/2206.04662), which gives no definition: docs/analysis.md compares.
    """
    falls = lasting_falls(ious)
    largest = max(falls, default=0.0)
    return falls.index(largest) if largest else None


def stays_below(ious: Sequence[float], level: float = LEVEL) -> int | None:
    """Return the first layer, counted from 0, from which on all IoUs are below `level`; None for none."""
    above = [place for place, iou in enumerate(ious) if iou >= level]
    first = above[-1] + 1 if above else 0
    return first if first < len(ious) else None


@dataclass(frozen=True)
class Trunk:
    """The layers that all tasks share, in the order in which an image meets them.

    `depths` is each weight's number of such layers from the image to it, itself included, on the longest way.
    `path` are the weights on the longest way through the trunk: those beside it, such as the projections on the
    shortcuts of a ResNet, have no place in a sequence of layers.
    """

    depths: Mapping[str, int]
    path: tuple[str, ...]

    def from_layer(self, number: int) -> tuple[str, ...]:
        """Return the weights of layer `number` of the path, counted from 0, and of all that come after it."""
        first = self.depths[self.path[number]]
        return tuple(name for name, depth in self.depths.items() if depth >= first)


def trunk_of(model: nn.Module, images: Tensor, names: Iterable[str]) -> Trunk:
    """Return the order of the layers with the weights `names`, by autograd on `images` [B, 3, H, W].

    The model may be on the meta device, and is left as it was. Of two ways of equal length one is the path.
    """
    wanted = set(names)
    known = {id(weight): name for name, weight in prunable(model).items() if name in wanted}
    with untouched(model), torch.enable_grad():
        model.eval()
        start = images.detach().requires_grad_()
        roots = [output.grad_fn for output in model(start.clone()).values()]
    ways: dict[Any, tuple[str, ...]] = {}  # the longest way from the images to a step of the computation
    weights: dict[Any, tuple[str, ...]] = {}  # what a step that no image comes to is computed from
    depths: dict[str, int] = {}
    for node in _inputs_first(roots):
        inputs = [child for child, _ in node.next_functions if child is not None]
        variable = getattr(node, "variable", None)
        own = tuple(dict.fromkeys(name for child in inputs for name in weights.get(child, ())))
        if variable is start:
            ways[node] = ()
        elif from_images := [ways[child] for child in inputs if child in ways]:
            ways[node] = (*max(from_images, key=len), *own)
            depths |= {name: max(depths.get(name, 0), len(ways[node])) for name in own}
        else:
            weights[node] = own or ((known[id(variable)],) if id(variable) in known else ())
    path = max((ways[root] for root in roots if root in ways), key=len, default=())
    once = tuple(dict.fromkeys(path))  # a weight that is used several times has its place at the first
    return Trunk({name: depths[name] for name in known.values() if name in depths}, once)


def _inputs_first(roots: Sequence[Any]) -> Iterator[Any]:
    """Yield the steps of a computation, each once and after all that it takes; deeper than Python recurses."""
    seen, stack = set(), [(root, False) for root in reversed(roots)]
    while stack:
        node, done = stack.pop()
        if done:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child, _ in reversed(node.next_functions) if child is not None)


@dataclass(frozen=True)
class Branch:
    """What it would take to give each task its own copy of the trunk from a layer of its path on.

    `before` is the IoU of the layer before, nan for none, and `after` the highest from there on. `dense` is how
    many weights more the network would have. `kept` is how many more would be kept: those that each task keeps in
    its own copy, less those that any task keeps, which one copy for all has to hold.
    """

    number: int
    name: str
    before: float
    after: float
    dense: int
    kept: int


def branch_at(number: int, trunk: Trunk, overlaps: Mapping[str, Overlap]) -> Branch:
    """Return what a branch at layer `number` of the trunk's path, counted from 0, would take."""
    ious = [overlaps[name].iou for name in trunk.path]
    copied = [overlaps[name] for name in trunk.from_layer(number)]
    return Branch(
        number=number,
        name=trunk.path[number],
        before=ious[number - 1] if number else math.nan,
        after=max(ious[number:]),
        dense=sum((len(part.kept) - 1) * part.weights for part in copied),
        kept=sum(sum(part.kept) - part.by_any for part in copied),
    )
