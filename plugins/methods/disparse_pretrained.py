"""DiSparse pretrained: score the weights of a trained network for each task alone; an arbiter; fine-tune.

Equations 14 to 18 of the paper: abs(gradient) times weight squared, summed over batches. The released code uses
that on Taskonomy only, where it crashes, and abs(weight) for NYU-v2 and Cityscapes, which is the variant `l1`: its
scores are the same for all tasks, and only the ratios to each head differ. The released code also never lowers the
learning rate of the fine-tuning; here the recipe holds.
"""

from mtlprune_bench import (
    OR,
    PER_TASK,
    TRAINED,
    FixedRatio,
    Method,
    Register,
    gradient_flow,
    hookimpl,
    magnitude,
    once,
)


@hookimpl
def register_methods(register: Register) -> None:
    """Register the method."""
    register(
        Method(
            name="disparse-pretrained",
            paper="https://arxiv.org/abs/2206.04662",
            score=gradient_flow(batches=50),
            scope=PER_TASK,
            arbiter=OR,
            schedule=once(),
            start=TRAINED,
            budget="finetune",
            variants={
                "l1": {"score": magnitude()},
                "release": {"score": magnitude(), "calibration": FixedRatio()},
                "release-taskonomy": {
                    "score": gradient_flow(batches=50, forward="per-voter"),
                    "calibration": FixedRatio(),
                },
            },
            sources={
                "score": "DiSparse, equation 15; variant l1: create_pruned_net.py:85 and 101",
                "score.batches": "DiSparse, section 4.4: 50 random batches",
                "score.mode": "released code: batch statistics and dropout are on while scoring",
                "arbiter": "DiSparse, equation 18",
                "budget": "DiSparse, section 4.4: 1000 steps, Taskonomy 4000",
            },
        )
    )
