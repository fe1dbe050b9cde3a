"""One run on several devices: equal processes that share out each batch, and sum what each made of its part.

The numbers are those of one process, but for the order of sums. Every process builds the same network and has
every batch at hand, so that only three things travel. Predictions: each process runs the network on its own
images, and all compute the losses of the whole batch, because a mean over valid pixels is no mean of the means of
parts. The statistics of batch norm, forward and backward. And the gradients, summed before anybody looks at them.
torch's own wrapper, DistributedDataParallel, averages the losses of parts instead, and does not see weights that
are hidden, softened or scored outside of its forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mtlprune_bench.errors import UsageError

T = TypeVar("T")

BUCKET = 2**25
"""Numbers that are summed over processes at once: few calls, and little memory beside the gradients."""


@dataclass(frozen=True)
class Processes:
    """The processes of one run, seen by the one with number `index` of `count`; alone where nothing is said."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Return whether this is the one process that reads and writes files and tells observers."""
        return self.index == 0

    def takes(self, number: int) -> bool:
        """Return whether this process makes piece `number` of work, counted from 0, that is shared out in turn."""
        return number % self.count == self.index

    def share(self, length: int, index: int | None = None) -> slice:
        """Return which of `length` images this process, or the one with another `index`, computes.

        Raises UsageError where there are fewer images than processes.
        """
        if length < self.count:
            raise UsageError(
                f"{length} images cannot be shared out over {self.count} devices. Lower --devices, raise "
                "train.batch, or lower train.accumulate."
            )
        index = self.index if index is None else index
        size, rest = divmod(length, self.count)
        start = index * size + min(index, rest)
        return slice(start, start + size + (index < rest))

    def from_first(self, make: Callable[[], T]) -> T:
        """Return, in every process, what `make` returns in the first one, the only one to call it."""
        if self.count == 1:
            return make()
        from accelerate.utils import broadcast_object_list

        made = [make() if self.first else None]
        return broadcast_object_list(made)[0]  # type: ignore[no-any-return]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Sum `tensors`, floating-point ones of one type, over all processes, in place."""
        if self.count == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            torch.distributed.all_reduce(flat)
            sums = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, total in zip(bucket, sums, strict=True):
                tensor.copy_(total.view_as(tensor))

    def agree(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the first process's `masks`, whatever kernels made of the others' last digits."""
        if self.count > 1 and masks:
            flat = torch.cat([mask.flatten() for mask in masks.values()]).to(torch.uint8)
            torch.distributed.broadcast(flat, src=0)
            parts = torch.split(flat.bool(), [mask.numel() for mask in masks.values()])
            masks = {name: part.view_as(masks[name]) for name, part in zip(masks, parts, strict=True)}
        return dict(masks)

    def forward(self, network: Callable[[Tensor], dict[str, Tensor]], images: Tensor) -> dict[str, Tensor]:
        """Return the predictions of `network` for `images` [B, ...] by task, each [B, ...].

        Gradients flow to this process's own share of them; the sum over processes is that of the whole batch.
        Batch norm and dropout are those of the whole batch. What else is random in a network is drawn alike by all
        processes, and another layer that looks at several images at once sees those of one process.
        """
        if self.count == 1:
            return network(images)
        own = self.share(len(images))
        with _WholeBatch(self, len(images)):
            outputs = network(images[own])
        return {name: _joined(output, own, len(images)) for name, output in outputs.items()}


ALONE = Processes()


def present() -> Processes:
    """Return the processes that were launched together, seen by this one; alone in any other process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return ALONE


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield `tensors` in lists of about as many numbers as are summed at once."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        bucket.append(tensor)
        if sum(one.numel() for one in bucket) >= BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _joined(output: Tensor, own: slice, length: int) -> Tensor:
    """Return the predictions of all processes, of which those of the `own` rows carry gradients."""
    whole = output.new_zeros(length, *output.shape[1:])
    whole[own] = output.detach()
    torch.distributed.all_reduce(whole)
    return torch.cat([whole[: own.start], output, whole[own.stop :]])


class _Sum(torch.autograd.Function):
    """The sum over processes, of a tensor and of its gradients: all of them depend on it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        torch.distributed.all_reduce(total)
        return total


class _WholeBatch(TorchFunctionMode):
    """While it lasts, batch norm and dropout of a share of images are what they are in a batch of `length`.

    Layers are met where they call torch, so that a network needs no change: torch.nn.SyncBatchNorm does not exist
    on a CPU. A function made of others, such as attention with dropout inside, is met as a whole and left alone.
    """

    def __init__(self, processes: Processes, length: int) -> None:
        super().__init__()
        self._processes, self._length, self._own = processes, length, processes.share(length)
        drops: list[Any] = [F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout, torch.feature_dropout]
        self._replaced: dict[Any, Callable[..., Any]] = {
            F.batch_norm: self._batch_norm,
            torch.batch_norm: self._native,
        }
        self._replaced |= {drop: self._dropping(drop) for drop in drops}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._replaced.get(func, func)(*args, **(kwargs or {}))

    def _dropping(self, drop: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return what drops of a share what `drop` drops of the whole batch."""

        def dropped(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
            # Some layers fold other dimensions into that of the images.
            each, rest = divmod(len(input), self._own.stop - self._own.start)
            assert not rest, "a layer has the same number of rows for each image"
            whole = drop(input.new_ones(self._length * each, *input.shape[1:]), p, training)
            return input * whole[self._own.start * each : self._own.stop * each]

        return dropped

    def _native(self, input: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, *rest: Any) -> Tensor:
        """Return batch norm as torch's own function is called, which takes its arguments in another order."""
        return self._batch_norm(input, mean, variance, weight, bias, *rest[:3])

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        wide = input if input.dtype == torch.float64 else input.float()
        count, mean, variance = self._statistics(wide)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean), momentum)
                running_var.lerp_((variance * count / (count - 1)).to(running_var), momentum)
        scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
        shift = -mean * scale + (0 if bias is None else bias)
        shape = (1, -1, *[1] * (input.dim() - 2))
        return torch.addcmul(shift.view(shape), wide, scale.view(shape)).to(input.dtype)

    def _statistics(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return number, mean and variance of each channel of `values` [b, C, ...] over all processes."""
        variance, mean = torch.var_mean(values, [0, *range(2, values.dim())], correction=0)
        number = mean.new_full((1,), values.numel() / len(mean))
        # Each process fills its row, as sums of squares would lose digits where means are far from zero.
        rows = torch.zeros(self._processes.count, 2 * len(mean) + 1, dtype=mean.dtype, device=mean.device)
        index = torch.tensor([self._processes.index], device=mean.device)
        rows = _Sum.apply(rows.index_add(0, index, torch.cat([number, mean, variance])[None]))
        numbers, means, variances = rows[:, :1], rows[:, 1 : len(mean) + 1], rows[:, len(mean) + 1 :]
        count = numbers.sum()
        whole = (numbers * means).sum(0) / count
        spread = (numbers * (variances + (means - whole).square())).sum(0) / count
        return count, whole, spread
