"""SynFlow: remove, before training and without data, the weights through which least flows from input to output.

R is the sum of the outputs for an image of ones, with every parameter replaced by its absolute value; a weight's
score is |w| dR/d|w|, the part of R that flows through it. The scores of every layer of a chain sum to the same R,
so that the weights of a layer gain as it thins out: in 100 rounds, each of which scores what the one before left,
no layer is emptied while another can spare weights.

Departs from the authors' code (ganguli-lab/Synaptic-Flow, Pruners/pruners.py):
- float64, where theirs is float32 and can overflow; weights are never changed, so no signs have to be restored.
- Normalisation statistics are fresh, mean 0 and variance 1, where theirs are the network's in absolute value:
  the same before training, and of any meaning after it.
- R sums the outputs of all tasks that a voter answers for; the factors of their losses are not applied, as R has
  no loss. Heads are no layers of one chain: with one voter, a head of few outputs, through which little flows,
  can be emptied for the sake of another. With scope=per-task each has an R of its own.
- Exact sparsity: the authors remove all weights that equal the last one removed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtlprune_bench import (
    AT_INIT,
    JOINT,
    Method,
    Register,
    Scores,
    Scoring,
    hookimpl,
    once,
    untouched,
)


@dataclass(frozen=True)
class SynFlow:
    """abs(weight) * dR / d abs(weight), R the summed outputs of the network made positive. Needs no data."""

    name: str = field(default="synflow", init=False)

    def passes(self, voters: int) -> tuple[int, int]:
        """Return the forward and backward passes, on one image, that scoring for `voters` voters takes."""
        return 1, voters

    def __call__(self, scoring: Scoring) -> Scores:
        """Return the synaptic flow through each weight for each voter, float64, 0 or more."""
        tensors = {**positive_buffers(scoring.model), **positive_parameters(scoring.model)}
        weights = {name: tensors[name].requires_grad_() for name in scoring.weights}
        with untouched(scoring.model):
            scoring.model.eval()
            outputs = functional_call(scoring.model, tensors, (ones(scoring),))
            scores = {}
            for voter in scoring.voters:
                flow = torch.stack([outputs[task].sum() for task in voter.losses]).sum()
                chosen = [weights[name] for name in voter.weights]
                keep_graph = voter is not scoring.voters[-1]
                gradients = torch.autograd.grad(flow, chosen, retain_graph=keep_graph)
                # Already 0 or more, but for layers that make negative values of positive ones (layer norm).
                scores[voter.name] = {
                    name: (weight.detach() * gradient).abs_()
                    for name, weight, gradient in zip(voter.weights, chosen, gradients, strict=True)
                }
        return scores


def ones(scoring: Scoring) -> Tensor:
    """Return an image of ones [1, 3, H, W], float64, of the size that the network trains on."""
    images = next(iter(scoring.batches(1))).images
    return torch.ones(1, *images.shape[1:], dtype=torch.float64, device=images.device)


def positive_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the absolute values of all parameters, biases included, float64."""
    return {name: parameter.detach().abs().double() for name, parameter in model.named_parameters()}


def positive_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the absolute values of all buffers, float64, whole numbers as they are; fresh statistics."""
    buffers = {}
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            # abs() of a trained mean would not make the flow positive: it is subtracted.
            buffers[name] = torch.zeros_like(buffer, dtype=torch.float64)
        elif name.endswith("running_var"):
            buffers[name] = torch.ones_like(buffer, dtype=torch.float64)
        elif buffer.is_floating_point():
            buffers[name] = buffer.abs().double()
        else:
            buffers[name] = buffer
    return buffers


@hookimpl
def register_scorers(register: Register) -> None:
    """Register the scorer."""
    register(SynFlow())


@hookimpl
def register_methods(register: Register) -> None:
    """Register the method."""
    register(
        Method(
            name="synflow",
            paper="https://arxiv.org/abs/2006.05467",
            score=SynFlow(),
            scope=JOINT,
            schedule=once(),
            start=AT_INIT,
            rounds=100,
            sources={
                "rounds": "SynFlow's experiments; its code does one unless told otherwise",
                "scope": "the sum of all outputs; the paper has one task",
            },
        )
    )
