"""Random pruning: the weights that go are drawn by lot. What does not beat it has learned nothing."""

from mtlprune_bench import AT_INIT, JOINT, TRAINED, Erk, Method, Register, hookimpl, noise, once

SOURCE = "not stated in DiSparse; exact-count uniform over all prunable weights"


@hookimpl
def register_methods(register: Register) -> None:
    """Register the methods."""
    register(
        Method(
            name="random",
            description="Random pruning at initialisation: every weight is as likely to go as any other.",
            score=noise(),
            scope=JOINT,
            schedule=once(),
            start=AT_INIT,
            sources={"allocation": SOURCE},
        )
    )
    register(
        Method(
            name="random-erk",
            description="Random pruning at initialisation, with the layer densities of RigL.",
            allocation=Erk(),
            score=noise(),
            scope=JOINT,
            schedule=once(),
            start=AT_INIT,
            sources={"allocation": "RigL, section 3; Liu et al. 2022, arXiv:2202.02643"},
        )
    )
    register(
        Method(
            name="random-pretrained",
            description="Random pruning of a trained network, then fine-tuning.",
            score=noise(),
            scope=JOINT,
            schedule=once(),
            start=TRAINED,
            budget="finetune",
            sources={"allocation": SOURCE, "budget": "DiSparse, section 4.4"},
        )
    )
