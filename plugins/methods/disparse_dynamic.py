"""DiSparse dynamic: as RigL, but each task grows the weights it wants, and an arbiter decides on shared ones.

Equations 10 to 13, 18 and section 4.7 of the paper. A shared layer can grow more than it dropped, as tasks
differ in what they want; the next update drops the excess, and the last one leaves exactly the sparsity asked
for. The formula that section 4.7 prints for this is upside down; the code's is right, and here the counts of
weights are integers. The paper states one growth budget for the whole network (equation 12), the code one for
each layer, which is taken here.

`--set method.variant=release` follows the released code where it differs: removed weights are hidden instead of
being zero, keep decaying, and come back as they are, moments included; gradients to grow by are those of the
dense network with these stale weights, on two halves of the batch, one forward pass for each task. Published
numbers cannot come from exactly this code, which stops with an error at the last update.
"""

from mtlprune_bench import (
    AT_INIT,
    OR,
    PER_TASK,
    Erk,
    Method,
    Register,
    every,
    gradient,
    hookimpl,
    magnitude,
    noise,
)


@hookimpl
def register_methods(register: Register) -> None:
    """Register the method."""
    register(
        Method(
            name="disparse-dynamic",
            paper="https://arxiv.org/abs/2206.04662",
            score=noise(),
            scope=PER_TASK,
            arbiter=OR,
            allocation=Erk(power=0.9),
            schedule=every(regrow=0.5),
            drop=magnitude(),
            grow=gradient(batches=0),
            grown="zero",
            start=AT_INIT,
            variants={
                "release": {
                    "grow": gradient(batches=0, parts=2, forward="per-voter"),
                    "removed": "stale",
                }
            },
            sources={
                "score": "released code: the first masks are random; the paper is silent",
                "allocation.power": "released code, ERK_power_scale in dynamic_prune.py",
                "schedule.regrow": "released code: 0.5; DiSparse, section 4.4: cosine decay",
                "schedule.interval": "the recipe's update_every; released code: 50, Taskonomy 250",
                "schedule.stop": "the recipe's update_stop; DiSparse, section 4.4: three quarters of training",
                "grow.batches": "released code: the batch that the next step trains on",
                "grown": "RigL, which the paper follows; the released code brings back stale weights",
                "arbiter": "DiSparse, equation 18",
            },
        )
    )
