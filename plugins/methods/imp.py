"""Iterative magnitude pruning of a trained network: prune a little, train a little, eleven times; then fine-tune.

DiSparse compares with it (section 4.4, citing Deep Compression), and its code lists 11 rounds of 100 steps but
nothing that uses them. How much a round removes is stated nowhere: here every round keeps the same fraction of
what is left. There is no rewinding, and the rounds train with the first learning rate of the fine-tuning.
"""

from mtlprune_bench import JOINT, TRAINED, Method, Register, hookimpl, levels, magnitude


@hookimpl
def register_methods(register: Register) -> None:
    """Register the method."""
    register(
        Method(
            name="imp",
            paper="https://arxiv.org/abs/1510.00149",
            score=magnitude(),
            scope=JOINT,
            schedule=levels(rounds=11, steps=100),
            start=TRAINED,
            budget="finetune",
            sources={
                "schedule.rounds": "DiSparse's configuration, PRUNE_TIMES",
                "schedule.steps": "DiSparse's configuration, PRUNE_ITERS",
                "budget": "DiSparse, section 4.4",
            },
        )
    )
