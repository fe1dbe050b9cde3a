"""RigL: a sparse network that, while it trains, drops its smallest weights and grows those with large gradients.

As in google-research/rigl, with four differences. Removed weights rank below every kept one when weights are
dropped; there, noise on the magnitudes can lift them. The gradient that weights are grown by is that of a batch
of its own, on which no step is made; there, the update takes the place of a step. Interval and end of updates
are the recipe's, as for all methods that prune while training. And the masks have exactly the sparsity asked
for. With `--set method.variant=disparse` power and fraction are those of the released DiSparse code.
"""

from mtlprune_bench import AT_INIT, JOINT, Erk, Method, Register, every, gradient, hookimpl, magnitude, noise


@hookimpl
def register_methods(register: Register) -> None:
    """Register the method."""
    register(
        Method(
            name="rigl",
            paper="https://arxiv.org/abs/1911.11134",
            score=noise(),
            scope=JOINT,
            allocation=Erk(power=1.0),
            schedule=every(regrow=0.3),
            drop=magnitude(),
            grow=gradient(),
            grown="kept",
            start=AT_INIT,
            variants={"disparse": {"allocation": Erk(power=0.9), "schedule": every(regrow=0.5)}},
            sources={
                "score": "RigL, section 3: the first masks are random",
                "allocation.power": "its code, erk_power_scale; 0.9 in DiSparse's",
                "schedule.regrow": "RigL, section 4.1: 0.3 with cosine decay; 0.5 in DiSparse's code",
                "schedule.interval": "the recipe's update_every; 100 in RigL",
                "schedule.stop": "the recipe's update_stop; 25000 of 32000 steps in RigL",
                "grown": "its code, reinit_when_same=False: what is dropped and regrown at once is untouched",
            },
        )
    )
