"""Checks of models: what they predict, what their weights are, and how they are made smaller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtlprune_bench.adapters import Model
from mtlprune_bench.pruning.components import discover, prunable
from mtlprune_bench.runs.config import override
from mtlprune_bench.testing.case import Case, equal, strange_generators
from mtlprune_bench.testing.checks import contract
from mtlprune_bench.training.networks import count_weights

CHANNELS = {"one": 3, "two": 1, "three": 2}
"""Outputs by task: the names are nobody's, as a model knows none."""

SIZES = ((64, 96), (65, 97))
"""Rows and columns of images."""


def _settings(case: Case) -> Any:
    return override(case.value.settings, case.settings.get("model", {}), "model")


def _built(case: Case, channels: Mapping[str, int] = CHANNELS, seed: int = 0) -> nn.Module:
    """Return a network of the model, drawn with `seed`."""
    model: Model = case.value
    with strange_generators():
        torch.manual_seed(seed)
        return model.build(channels, _settings(case), model.argument)


def _images(size: tuple[int, int]) -> Tensor:
    drawn = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    return drawn + torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)  # one is brighter than the other


@contract("models")
def check_outputs(case: Case) -> str | None:
    """Images of any size become a finite map for each task, be it one task or three, each image alone."""
    for channels in (CHANNELS, {"one": 3}):
        network = _built(case, channels).eval()
        for size in SIZES:
            with torch.inference_mode():
                outputs, alone = network(_images(size)), network(_images(size)[:1])
            assert isinstance(outputs, dict), f"returns {type(outputs).__name__}; it must return a dict by task."
            assert list(outputs) == list(channels), (
                f"predicts {list(outputs)} where {list(channels)} are asked for."
            )
            for task, output in outputs.items():
                fits = output.ndim == 4 and output.shape[:2] == (2, channels[task])
                assert fits, (
                    f"predicts '{task}' in shape {tuple(output.shape)} for 2 images of {size[0]} x {size[1]} "
                    f"pixels; it must be [2, {channels[task]}, h, w]."
                )
                assert torch.isfinite(output).all(), f"predicts '{task}' by numbers that are not finite."
                assert torch.allclose(output[:1], alone[task], rtol=1e-3, atol=1e-4), (
                    f"predicts '{task}' for an image otherwise when another one is beside it, in evaluation. "
                    "Normalise each image alone, or by running statistics."
                )
    return None


@contract("models")
def check_weights(case: Case) -> str | None:
    """Every task uses prunable weights, and gradients reach all that it uses."""
    network = _built(case)
    components = discover(network, _images(SIZES[0]))
    for task in CHANNELS:
        assert components.used_by(task), (
            f"has no prunable weights that '{task}' depends on. Those of nn.Conv2d and nn.Linear are prunable."
        )
    network.train()
    loss = torch.stack([output.square().mean() for output in network(_images(SIZES[0])).values()]).sum()
    weights = prunable(network)
    used = [weights[name] for name in components.users]
    for name, gradient in zip(components.users, torch.autograd.grad(loss, used), strict=True):
        assert torch.isfinite(gradient).all(), f"has a gradient that is not finite in '{name}'."
        assert gradient.any(), (
            f"has no gradient in '{name}' before training, so that scores by gradients see nothing of it. Is a "
            "scale after it zero, or every unit dead?"
        )
    return None


@contract("models")
def check_state(case: Case) -> str | None:
    """Weights come from torch's generator alone, and all that a network knows is in its state."""
    first, same, other = _built(case), _built(case), _built(case, seed=1)
    drawn = [prunable(network) for network in (first, same, other)]
    assert equal(drawn[0], drawn[1]), (
        "has other weights when it is built with the same seed. Draw from torch only."
    )
    assert not equal(drawn[0], drawn[2]), "has the same weights with another seed. Draw them."
    first.train()
    first(_images(SIZES[0]))
    other.load_state_dict(first.state_dict())
    with torch.inference_mode():
        here, there = (network.eval()(_images(SIZES[0])) for network in (first, other))
    assert equal(here, there), (
        "predicts otherwise after its state was loaded into a new network. Keep what it learns in parameters and "
        "buffers."
    )
    return None


@contract("models")
def check_scaling(case: Case) -> str | None:
    """A network that is made smaller has fewer weights, and with factor 1 as many as before."""
    model: Model = case.value
    if model.scaled is None:
        return (
            "it cannot be made smaller; runs that compare with a small dense network need scaled(settings, factor)"
        )
    settings = _settings(case)
    whole, same, half = (
        count_weights(model, CHANNELS, given)
        for given in (settings, model.scaled(settings, 1.0), model.scaled(settings, 0.5))
    )
    assert same == whole, f"has {same} weights when it is scaled by 1, and {whole} unscaled."
    assert 0 < half < whole, f"has {half} of its {whole} weights when it is scaled by 0.5. Let widths be scaled."
    return None
