"""The straightforward implementation: pruning, training and measuring as the released codes do, step by step.

Written anew from what github.com/SHI-Labs/DiSparse-Multitask-Model-Compression does, without anything of the
engine: a copy of the network whose masks are parameters, a forward pass for each task, thresholds from sorted
scores, weights that are a product with their mask, predictions at full size that are kept until the end. Networks
have a `trunk` and `heads` by task. Where the released code draws dropout anew in each task's forward pass, here
all passes on a batch draw the same, so that the masks can be compared with those of one shared pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import prune

Losses = Callable[[Mapping[str, Tensor], Any, str], Tensor]
"""The loss of one task, of the predictions of all and a batch."""


def convolutions(net: nn.Module) -> dict[str, nn.Module]:
    """Return the layers with weights to prune, by name."""
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


def is_used(layer: str, task: str) -> bool:
    """Return whether a task uses a layer, by its name."""
    return layer.startswith("trunk.") or layer.startswith(f"heads.{task}.")


def task_scores(
    net: nn.Module,
    batches: Iterable[Any],
    tasks: Sequence[str],
    loss: Losses,
    redraw: torch.Generator | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Return the sum over batches of abs(gradient of a mask) of each layer, by task and layer.

    The masks are all one and belong to a copy of the network, its weights drawn anew with `redraw`.
    """
    net = copy.deepcopy(net).train()
    layers = convolutions(net)
    if redraw is not None:
        for layer in layers.values():
            nn.init.xavier_normal_(layer.weight, generator=redraw)
    weights = {f"{name}.weight": layer.weight.detach() for name, layer in layers.items()}
    masks = {name: torch.ones_like(weight, requires_grad=True) for name, weight in weights.items()}
    scores: dict[str, dict[str, Tensor]] = {task: {} for task in tasks}
    for batch in batches:
        for task in tasks:
            for mask in masks.values():
                mask.grad = None
            masked = {name: weights[name] * mask for name, mask in masks.items()}
            with same_draws(batch.images.device, task != tasks[-1]):
                outputs = functional_call(net, masked, (batch.images,))
            loss(outputs, batch, task).backward()
            for name in layers:
                if is_used(name, task):
                    found = masks[f"{name}.weight"].grad.data.abs()
                    scores[task][name] = scores[task][name] + found if name in scores[task] else found
    return scores


def same_draws(device: torch.device, again: bool) -> Any:
    """Return a context after which torch's generators draw the same once more, if `again`."""
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    return torch.random.fork_rng(devices, enabled=again)


def task_masks(scores: Mapping[str, Mapping[str, Tensor]], keep: float) -> dict[str, Tensor]:
    """Return the masks, int32 by layer, of weights that are among the fraction `keep` of some task's best."""
    masks: dict[str, Tensor] = {}
    for own in scores.values():
        flat = torch.cat([score.flatten() for score in own.values()])
        norm = flat.sum()
        flat.div_(norm)
        best, _ = torch.topk(flat, int(len(flat) * keep), sorted=True)
        for name, score in own.items():
            mask = (score / norm >= best[-1]).int()
            masks[name] = ((masks[name] + mask) > 0).int() if name in masks else mask
    return masks


def install(net: nn.Module, masks: Mapping[str, Tensor]) -> float:
    """Give `net` the masks as buffers beside `weight_orig`, and return its sparsity."""
    layers = convolutions(net)
    chosen = [(layers[name], "weight") for name in masks]
    prune.global_unstructured(chosen, pruning_method=prune.L1Unstructured, amount=0)
    for name, mask in masks.items():
        layers[name].weight_mask = mask
    kept = sum(float((mask == 1).sum()) for mask in masks.values())
    return 1 - kept / sum(mask.numel() for mask in masks.values())


def bare(net: nn.Module) -> None:
    """Take the masks away again from a network that `install` gave some; its weights stay as they were."""
    for layer in convolutions(net).values():
        if "weight_orig" in layer._parameters:
            layer._forward_pre_hooks.clear()
            weight = layer._parameters.pop("weight_orig")
            del layer.weight, layer._buffers["weight_mask"]
            layer.register_parameter("weight", weight)


def exact_masks(
    make_scores: Callable[[], Mapping[str, Mapping[str, Tensor]]], density: float, tolerance: float
) -> tuple[dict[str, Tensor], int]:
    """Return masks of about `density`, and after how many scorings: the fraction to keep is found by halving."""
    low, high, trials = 0.0, 1.0, 0
    while True:
        keep = (low + high) / 2
        masks = task_masks(make_scores(), keep)
        trials += 1
        kept = sum(int(mask.sum()) for mask in masks.values())
        reached = kept / sum(mask.numel() for mask in masks.values())
        if abs(reached - density) <= tolerance:
            return masks, trials
        low, high = (keep, high) if reached < density else (low, keep)


def update(
    net: nn.Module,
    masks: Mapping[str, Tensor],
    numbers: Mapping[str, int],
    regrow: float,
    batch: Any,
    parts: int,
    tasks: Sequence[str],
    loss: Losses,
    highest: Callable[[Tensor, int], Tensor],
) -> tuple[nn.Module, torch.optim.Adam, dict[str, Tensor]]:
    """Return a new network, its new optimizer, and its masks, after dropping and growing weights.

    `numbers` are how many weights each layer should have. What grows are the largest gradients of a copy of the
    network, summed over `parts` of the batch, for each task alone; a layer of several grows what any wants.
    `highest` makes the masks.
    """
    layers = convolutions(net)
    dropped = {}
    for name, layer in layers.items():
        if numbers[name] == layer.weight.numel():
            dropped[name] = masks[name].clone()
            continue
        left = min(numbers[name] - int(numbers[name] * regrow), int(masks[name].sum()))
        dropped[name] = highest(torch.where(masks[name].bool(), layer.weight.detach().abs(), -1.0), left)
    test = copy.deepcopy(net)
    prune.global_unstructured(
        [(layer, "weight") for layer in convolutions(test).values()], pruning_method=prune.L1Unstructured, amount=0
    )
    gradients = task_gradients(test, batch.parts(parts), tasks, loss)
    grown = {name: mask.clone() for name, mask in dropped.items()}
    for own in gradients.values():
        for name, gradient in own.items():
            missing = numbers[name] - int(dropped[name].sum())
            wanted = highest(torch.where(dropped[name].bool(), -1.0, gradient), missing)
            grown[name] = ((grown[name] + wanted) > 0).int()
    new = copy.deepcopy(net)
    install(new, grown)
    return new, torch.optim.Adam(new.parameters(), lr=1e-3, weight_decay=5e-4), grown


def task_gradients(
    net: nn.Module, pieces: Iterable[Any], tasks: Sequence[str], loss: Losses
) -> dict[str, dict[str, Tensor]]:
    """Return the sum over `pieces` of abs(gradient) of each `weight_orig`, by task and layer."""
    net.train()
    layers = convolutions(net)
    sums: dict[str, dict[str, Tensor]] = {task: {} for task in tasks}
    for piece in pieces:
        for task in tasks:
            net.zero_grad()
            with same_draws(piece.images.device, task != tasks[-1]):
                outputs = net(piece.images)
            loss(outputs, piece, task).backward()
            for name, layer in layers.items():
                if is_used(name, task):
                    found = layer.weight_orig.grad.data.abs()
                    sums[task][name] = sums[task][name] + found if name in sums[task] else found
    return sums


def highest(values: Tensor, count: int) -> Tensor:
    """Return the mask, int32, of the `count` highest of `values`, found by sorting."""
    mask = torch.zeros_like(values, dtype=torch.int32).flatten()
    mask[torch.topk(values.flatten(), count, sorted=True).indices] = 1
    return mask.view_as(values)


def first_highest(values: Tensor, count: int) -> Tensor:
    """Return what `highest` does, where of equal values the first are taken and not any."""
    mask = torch.zeros_like(values, dtype=torch.int32).flatten()
    mask[torch.sort(values.flatten(), descending=True, stable=True).indices[:count]] = 1
    return mask.view_as(values)


def train_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Any,
    loss: Callable[[Mapping[str, Tensor], Any], Tensor],
) -> Tensor:
    """Make one step of a network whose weights are `weight_orig * weight_mask`, and return its loss."""
    net.train()
    optimizer.zero_grad()
    total = loss(net(batch.images), batch)
    total.backward()
    optimizer.step()
    return total.detach()


class Evaluation:
    """Segmentation and normals, measured on predictions at full size that are all kept until the end."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.matrices: list[Any] = []
        self.kept: list[tuple[Any, Any]] = []
        self.entropies: list[float] = []
        self.cosines: list[Any] = []

    def add(self, outputs: Mapping[str, Tensor], batch: Any) -> None:
        """Take up a batch of one image."""
        size = batch.images.shape[-2:]
        scores = F.interpolate(outputs["segmentation"], size).permute(0, 2, 3, 1).reshape(-1, self.classes)
        valid = batch.masks["segmentation"].reshape(-1)
        truth = batch.targets["segmentation"].reshape(-1)[valid]
        self.entropies.append(float(F.cross_entropy(scores[valid], truth)))
        guess, truth = scores[valid].argmax(1).cpu().numpy(), truth.cpu().numpy()
        self.kept.append((guess, truth))
        self.matrices.append(confusion_matrix(truth, guess, labels=np.arange(self.classes)))
        normals = F.normalize(F.interpolate(outputs["normals"], size), dim=1).permute(0, 2, 3, 1).reshape(-1, 3)
        valid = batch.masks["normals"].reshape(-1)
        true = F.normalize(batch.targets["normals"], dim=1).permute(0, 2, 3, 1).reshape(-1, 3)
        self.cosines.append(F.cosine_similarity(normals[valid], true[valid]).clamp(-1, 1).cpu().numpy())

    def numbers(self) -> dict[str, float]:
        """Return all metrics by name; angles in degrees."""
        guess, truth = (np.concatenate(values) for values in zip(*self.kept, strict=True))
        matrix = np.sum(self.matrices, 0)
        hits = np.diag(matrix)
        counted = hits > 0
        union = matrix.sum(0) + matrix.sum(1) - hits
        angles = np.degrees(np.arccos(np.concatenate(self.cosines)))
        return {
            "mean_iou": float((hits[counted] / union[counted]).mean()),
            "pixel_accuracy": float((guess == truth).mean()),
            "error": float(np.mean(self.entropies)),
            "mean_angle": float(angles.mean()),
            "median_angle": float(np.median(angles)),
            **{f"within_{limit}": float((angles <= limit).mean()) for limit in (11.25, 22.5, 30)},
        }
