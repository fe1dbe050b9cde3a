"""Random pruning at initialisation: every weight of the network is as likely to go as any other."""

from mtlprune_bench import AT_INIT, JOINT, Method, Register, hookimpl, noise, once


@hookimpl
def register_methods(register: Register) -> None:
    """Register the method."""
    register(
        Method(
            name="random",
            score=noise(),
            scope=JOINT,
            schedule=once(),
            start=AT_INIT,
            sources={"allocation": "not stated in DiSparse; exact-count uniform over all prunable weights"},
        )
    )
