"""SET: as RigL, but weights are grown at random.

As in google-research/rigl: fixed layer densities, magnitude to drop by, updates after the gradient step. The
original (Mocanu et al., Nature Communications 2018) updates once an epoch, drops a constant 30 % (the smallest
positive and the largest negative weights apart) and gives new weights random values; here they begin at zero.
Its constant fraction: `--set method.schedule.decay=constant`.
"""

from mtlprune_bench import AT_INIT, JOINT, Erk, Method, Register, every, hookimpl, magnitude, noise


@hookimpl
def register_methods(register: Register) -> None:
    """Register the method."""
    register(
        Method(
            name="set",
            paper="https://arxiv.org/abs/1707.04780",
            score=noise(),
            scope=JOINT,
            allocation=Erk(power=1.0),
            schedule=every(regrow=0.3, after=True),
            drop=magnitude(),
            grow=noise(),
            grown="kept",
            start=AT_INIT,
            sources={
                "allocation": "as in RigL, with which it is compared",
                "schedule.regrow": "RigL, section 4.1, for both methods; SET's own zeta is 0.3, constant",
                "schedule.after": "RigL's code: SET updates after the gradient step",
                "schedule.interval": "the recipe's update_every",
                "schedule.stop": "the recipe's update_stop",
            },
        )
    )
