"""Magnitude pruning: of a trained network the smallest weights go, in one shot, and the rest is fine-tuned."""

from mtlprune_bench import JOINT, TRAINED, Method, Register, hookimpl, magnitude, once


@hookimpl
def register_methods(register: Register) -> None:
    """Register the method."""
    register(
        Method(
            name="magnitude",
            paper="https://arxiv.org/abs/1506.02626",
            score=magnitude(),
            scope=JOINT,
            schedule=once(),
            start=TRAINED,
            budget="finetune",
            sources={
                "allocation": "global, as in most comparisons since; Han et al. chose a threshold for each layer",
                "budget": "the fine-tuning of DiSparse, section 4.4, as for all methods on trained networks",
            },
        )
    )
