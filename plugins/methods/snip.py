"""SNIP: remove, before training, the weights whose removal changes the total loss least.

Departs from the authors' TensorFlow code (namhoonlee/snip-public) in pruning weights only, never biases, so
that all methods share out the same weights; and in ties, which are broken by index.
"""

from mtlprune_bench import AT_INIT, JOINT, Method, Register, hookimpl, once, saliency


@hookimpl
def register_methods(register: Register) -> None:
    """Register the method."""
    register(
        Method(
            name="snip",
            paper="https://arxiv.org/abs/1810.02340",
            score=saliency(batches=1, init="variance-scaling", mode="eval"),
            scope=JOINT,
            schedule=once(),
            start=AT_INIT,
            sources={
                "score.batches": "SNIP, section 4.2: one mini-batch; DiSparse's comparison used 50",
                "score.init": "SNIP, section 4.2, and its code: scored on weights drawn apart from those trained",
                "score.mode": "its code scores with is_train=False",
                "scope": "the weighted total loss",
            },
        )
    )
