"""Networks of your own: whatever builds one becomes a model, named by what it builds."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtlprune_bench.adapters import Model
from mtlprune_bench.errors import UsageError
from mtlprune_bench.runs.stages import DISCOVERY_SIZE

Build = Callable[..., nn.Module]


@dataclass(frozen=True)
class NoSettings:
    """A network without settings."""


def as_model(build: Build, channels: Mapping[str, int]) -> Model:
    """Return the model that `build(channels)`, or `build()`, makes, with `channels` of outputs by task.

    Its name is that of `build` with a digest of what it builds: layers, shapes, and the code of its classes
    outside of torch, as far as Python has their source. Raises UsageError for a network that is built already,
    and for one that does not map images [B, 3, H, W] to a dict of predictions [B, C, h, w] by task.
    """
    if isinstance(build, nn.Module):
        raise UsageError(
            f"model is one {type(build).__name__}, with its weights, but each seed begins with its own. Give what "
            f"builds it: model={type(build).__name__}, or model=lambda: {type(build).__name__}(...)."
        )
    takes = bool(inspect.signature(build).parameters)
    with torch.random.fork_rng(devices=[]):
        network = build(channels) if takes else build()
    if not isinstance(network, nn.Module):
        raise UsageError(f"model builds {type(network).__name__}; it must build a torch.nn.Module.")
    _check(network, channels)
    name = getattr(build, "__name__", "").replace("<lambda>", "") or type(network).__name__
    return Model(
        name=f"{name}-{_digest(network)}",
        description="a network of one's own",
        settings=NoSettings(),
        build=lambda channels, settings, argument: build(channels) if takes else build(),
    )


def _check(network: nn.Module, channels: Mapping[str, int]) -> None:
    """Raise UsageError where the predictions of `network` are not those of the tasks."""
    with torch.no_grad():
        outputs = network.eval()(torch.zeros(1, 3, DISCOVERY_SIZE, DISCOVERY_SIZE))
    found = {task: tuple(output.shape) for task, output in outputs.items()} if _is_dict(outputs) else {}
    fitting = all(len(found.get(task, ())) == 4 and found[task][1] == count for task, count in channels.items())
    if not found or not fitting:
        wanted = ", ".join(f"'{task}': [B, {count}, h, w]" for task, count in channels.items())
        raise UsageError(
            f"The network maps images to {found or type(outputs).__name__}; it must map them to a dict with "
            f"{wanted}."
        )


def _is_dict(outputs: object) -> bool:
    return isinstance(outputs, dict) and all(isinstance(output, Tensor) for output in outputs.values())


def _digest(network: nn.Module) -> str:
    """Return six hexadecimal digits of what a network is, but for its weights."""
    shapes = [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in network.state_dict().items()]
    kinds = {type(module) for module in network.modules()}
    own = sorted(_source(kind) for kind in kinds if not kind.__module__.startswith("torch."))
    return hashlib.sha256("\n".join([repr(network), *shapes, *own]).encode()).hexdigest()[:6]


def _source(kind: type) -> str:
    """Return the code of a class, without its comments and its layout; "" where Python does not have it."""
    try:
        return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(kind))))
    except (OSError, TypeError, SyntaxError):
        return ""
