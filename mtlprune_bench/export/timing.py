"""Timing: what variants of a network take, in time and in memory, measured side by side."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mtlprune_bench.export.kernels import held_bytes

WARM_UP = 3
"""Passes before those that are timed."""


@dataclass(frozen=True)
class Timing:
    """One variant of the network on one image.

    Milliseconds: the median and both quartiles. Bytes: those of weights and buffers, and the most that the tensors
    made in a pass hold at once beside them (not what kernels use inside).
    """

    variant: str
    median: float
    low: float
    high: float
    weight_bytes: int
    activation_bytes: int


def time_variants(variants: Mapping[str, nn.Module], images: Tensor, repeats: int) -> tuple[Timing, ...]:
    """Return the timings of networks on `images`; they take turns, so that what else the machine does hits all."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode():
        activations = {name: peak_bytes(network, images) for name, network in variants.items()}
        for turn in range(WARM_UP + repeats):
            # Another one begins each time: what a network leaves in the caches of the processor hits all alike.
            for place in range(len(names)):
                name = names[(turn + place) % len(names)]
                passed = _seconds(partial(variants[name], images), images.device)
                if turn >= WARM_UP:
                    seconds[name].append(passed)
    timings = []
    for name, taken in seconds.items():
        low, median, high = (1000 * value for value in _quartiles(taken))
        timings.append(Timing(name, median, low, high, held_bytes(variants[name]), activations[name]))
    return tuple(timings)


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    return low, median, high


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    """Return the time that `action` takes on `device`."""
    _wait(device)
    since = time.perf_counter()
    action()
    _wait(device)
    return time.perf_counter() - since


def _wait(device: torch.device) -> None:
    """Wait until `device` has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(network: nn.Module, images: Tensor) -> int:
    """Return the most bytes that tensors made in a pass over `images` hold at once, the images not counted."""
    known = [images, *network.parameters(), *network.buffers()]
    with torch.inference_mode(), _Held(known) as held:
        network(images)
    peak: int = held.peak
    return peak


class _Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors from when an operation makes them until nothing holds them; not of `known`."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._living = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                self._take_up(tensor.untyped_storage())
        return result

    def _take_up(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._living:
            return
        self._living.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._let_go, key, size)

    def _let_go(self, key: int, size: int) -> None:
        self._living.discard(key)
        self.now -= size
