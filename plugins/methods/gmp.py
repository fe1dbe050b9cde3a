"""Gradual magnitude pruning: while the network trains, the smallest weights of each layer go, ever more slowly.

Departs from TensorFlow's code in two settings: removed weights stay removed, where there they may come back
(`--set method.removed=stale`), and interval and end of pruning are the recipe's, as for all methods that prune
while training.
"""

from mtlprune_bench import AT_INIT, JOINT, Method, Register, Uniform, cubic, hookimpl, magnitude


@hookimpl
def register_methods(register: Register) -> None:
    """Register the method."""
    register(
        Method(
            name="gmp",
            paper="https://arxiv.org/abs/1710.01878",
            score=magnitude(),
            scope=JOINT,
            allocation=Uniform(),
            schedule=cubic(),
            start=AT_INIT,
            sources={
                "allocation": "Zhu and Gupta, section 3: every layer is pruned to the same sparsity",
                "schedule": "Zhu and Gupta, equation 1, from sparsity 0 at step 0",
                "schedule.interval": "the recipe's update_every; 100 in TensorFlow's code",
                "schedule.stop": "the recipe's update_stop",
            },
        )
    )
