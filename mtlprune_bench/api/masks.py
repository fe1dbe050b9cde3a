"""Masks as a value: put into any network and taken out again, kept in a file, exchanged with torch's own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from mtlprune_bench.errors import UsageError
from mtlprune_bench.pruning.masks import sparsity
from mtlprune_bench.training.checkpoint import read_masks, save_masks

WEIGHT = "weight"


class Masks(Mapping[str, Tensor]):
    """Which weights are kept: boolean tensors by the name of the weight, true where it is.

    `components` are the names of the weights that the same tasks use, by component; empty where nobody said.
    """

    def __init__(self, masks: Mapping[str, Tensor], components: Mapping[str, Iterable[str]] | None = None) -> None:
        if wrong := [name for name, mask in masks.items() if mask.dtype != torch.bool]:
            raise UsageError(f"The mask of '{wrong[0]}' is {masks[wrong[0]].dtype}; masks are of type torch.bool.")
        self._masks = dict(masks)
        self.components = {name: tuple(names) for name, names in (components or {}).items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"Masks({len(self)} weights, sparsity {self.sparsity():.4f})"

    def sparsity(self, names: Iterable[str] | None = None) -> float:
        """Return the fraction removed, in [0, 1], of all weights together, or of those called `names`."""
        return sparsity(self, names)

    def apply(self, model: nn.Module) -> None:
        """Put the masks into `model`, whose removed weights are zero from now on, whatever an optimizer does.

        By torch.nn.utils.prune: each layer computes with `weight_orig * weight_mask`, so that neither stale
        momentum nor weight decay brings a weight back, and `weight_orig` is the very parameter that `weight` was,
        so that optimizers made before go on. Raises UsageError where a mask does not fit, or one is there already.
        """
        places = self._places(model)
        if taken := [name for name, layers in places.items() for layer in layers if is_masked(layer)]:
            raise UsageError(f"'{taken[0]}' has a mask already; take it out first, with masks.remove(model).")
        for name, layers in places.items():
            for layer in layers:
                weight = layer.get_parameter(WEIGHT)
                mask = self[name].to(weight.device)
                with torch.no_grad():
                    weight.masked_fill_(~mask, 0.0)  # a factor of 0 would leave what is not finite
                torch_prune.custom_from_mask(layer, WEIGHT, mask)  # type: ignore[no-untyped-call]

    def remove(self, model: nn.Module) -> None:
        """Take the masks out of `model` again; the removed weights stay zero. Raises UsageError where none are."""
        places = self._places(model)
        if missing := [name for name, layers in places.items() for layer in layers if not is_masked(layer)]:
            raise UsageError(f"'{missing[0]}' has no mask to take out; masks.apply(model) puts it in.")
        for layer in (layer for layers in places.values() for layer in layers):
            torch_prune.remove(layer, WEIGHT)  # type: ignore[no-untyped-call]

    def _places(self, model: nn.Module) -> dict[str, list[nn.Module]]:
        """Return the layers that compute with each weight; those of one weight may be several."""
        layers = dict(model.named_modules())
        inner = {id(layer.out_proj) for layer in layers.values() if isinstance(layer, nn.MultiheadAttention)}
        places = {}
        for name, mask in self.items():
            path, _, attribute = name.rpartition(".")
            weight = parameter_of(layers[path]) if path in layers and attribute == WEIGHT else None
            if weight is None or weight.shape != mask.shape:
                found = "no such weight" if weight is None else f"one of shape {tuple(weight.shape)}"
                raise UsageError(
                    f"The mask of '{name}', of shape {tuple(mask.shape)}, does not fit: the model has {found}."
                )
            if id(layers[path]) in inner:
                raise UsageError(
                    f"'{name}' is read by torch.nn.MultiheadAttention without calling its layer, so that no mask "
                    "can be put there. Leave it out: Masks({k: v for k, v in masks.items() if k != '"
                    + name
                    + "'})."
                )
            places[name] = [layer for layer in layers.values() if parameter_of(layer) is weight]
        return places

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the masks to `path` as safetensors, one bit a weight, with a checksum. Raises StoreError."""
        save_masks(Path(path), self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Masks:
        """Return the masks that `save` or a run has written to `path`. Raises UsageError where they are not."""
        return cls(read_masks(Path(path)))

    @classmethod
    def from_torch(cls, model: nn.Module) -> Masks:
        """Return the masks that torch.nn.utils.prune has put into `model`, of layers' weights.

        A weight that several layers share counts once. Raises UsageError where there is none.
        """
        masks: dict[int, tuple[str, Tensor]] = {}
        for path, layer in model.named_modules():
            if is_masked(layer):
                name = f"{path}.{WEIGHT}".removeprefix(".")
                masks.setdefault(id(parameter_of(layer)), (name, layer.get_buffer("weight_mask").bool()))
        if not masks:
            raise UsageError("The model has no masks of torch.nn.utils.prune.")
        return cls(dict(masks.values()))


def is_masked(layer: nn.Module) -> bool:
    """Return whether torch.nn.utils.prune has put a mask on the weight of `layer`."""
    return "weight_mask" in layer._buffers


def parameter_of(layer: nn.Module) -> nn.Parameter | None:
    """Return the trained weight of `layer`, under a mask or not; None where it has none."""
    return layer._parameters.get("weight_orig", layer._parameters.get(WEIGHT))
