"""Forward passes of training: how many digits, which order in memory, and whether kernels are made for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtlprune_bench.errors import UsageError
from mtlprune_bench.recipe import Recipe

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The precisions in which forward passes compute with fewer digits than weights have."""

Forward = Callable[[Mapping[str, Tensor], Tensor], dict[str, Tensor]]
"""Maps weights to use in the place of the network's own, by name, and images [B, 3, H, W] to predictions."""


def forward_pass(model: nn.Module, recipe: Recipe) -> Forward:
    """Return the forward pass of `model` in training, as `recipe` asks for it; its predictions are plain.

    Weights stay as they are, in full precision and in order. Kernels are made at the first call, which raises
    UsageError where they cannot be.
    """

    def predict(hidden: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        return dict(functional_call(model, dict(hidden), (images,)) if hidden else model(images))

    half = HALF.get(recipe.precision)
    last = recipe.memory_format == "channels_last"
    network = _compiled(predict) if recipe.compile else predict

    def forward(hidden: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        # Layers go on in the order in which they get their input.
        images = images.contiguous(memory_format=torch.channels_last) if last else images
        with torch.autocast(images.device.type, half, enabled=half is not None):
            outputs = network(hidden, images)
        outputs = {task: output.contiguous() for task, output in outputs.items()} if last else outputs
        return {task: output.float() for task, output in outputs.items()} if half else outputs

    return forward


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with kernels made for it, which draw the random numbers that torch's own draw."""
    made = torch.compile(function, options={"fallback_random": True})

    def call(*arguments: Any) -> Any:
        try:
            with warnings.catch_warnings():
                # The compiler asks hidden weights for gradients, which only the network's own have.
                warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
                return made(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).partition("\n\n")[0].split())
            raise UsageError(
                f"torch.compile cannot make kernels for this network: {reason} Install a C++ compiler (for a GPU, "
                "Triton too), or set train.compile=false."
            ) from error

    return call
