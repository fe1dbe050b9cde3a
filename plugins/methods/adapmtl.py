"""AdapMTL: a soft threshold for the shared trunk and one for each head, trained together with the weights.

A weight W counts as sign(W) max(|W| - sigmoid(s), 0), s one number for each component. Weight decay moves
every s up by about its learning rate a step, and weights that the losses do not hold against it fall below
their threshold; once the sparsity asked for is reached the thresholds stand still. In the second part of the
training a task counts for more in the loss the more its loss still changes from step to step.

There is no file of the paper here, only its released code (MitchellX/AdapMTL), README and table 2. Departures
from the code:
- Learning rate, weight decay and Adam's betas (0.9, 0.999) are the dataset's recipe, as for every method; there
  betas are (0.5, 0.999) and weight decay is 1e-4.
- The thresholds' learning rates add up to 7.75 in any recipe, as they do there for NYU-v2, so that a shorter
  training moves them as far.
- The loss weights of K tasks add up to K; there to 3, whatever K is.
- Every head is counted, stopped and set; there only those of three tasks, which leaves out two of Taskonomy's.
- The masks are what is not zero at the end. The sparsity is near the one asked for; it is exact with
  `--set method.exact_finalize=true`.
- A loss that is exactly 0 counts as unchanged; there it is a division by zero.

In some hundred steps the default thresholds remove next to nothing, as unused weights need thousands to decay
below them. `--set method.variant=short` starts them higher, lets them rise whatever the losses say, and finalizes
exactly, so that there is something to compare on a stand-in.

"AdapMTL w/o adaptive thresholds" of table 2 is not defined in what was released. `adapmtl-single-threshold` is
our reading of it: one threshold for the whole network. `method.weighting=none` leaves out the other part.
"""

from dataclasses import replace

from mtlprune_bench import AdaptiveWeights, LearnedMethod, Register, hookimpl

TRAVEL = 7.75
"""1e-3, halved every 4000 of 20,000 steps."""

ADAPMTL = LearnedMethod(
    name="adapmtl",
    description="AdapMTL: a soft threshold for the shared trunk and one for each head, trained with the weights.",
    paper="https://arxiv.org/abs/2408.03913",
    group_by="component",
    s_init=-20.0,
    travel=TRAVEL,
    weighting=AdaptiveWeights(begin=0.25, window=0.025),
    variants={
        "release": {"s_init": -30.5, "threshold_weight_decay": 1e-4, "travel": None},
        "from-trained": {"s_init": -10.0, "checkpoint": "trained"},
        "short": {"s_init": -8.0, "threshold_weight_decay": 0.1, "exact_finalize": True},
    },
    sources={
        "group_by": "abstract: thresholds independently assigned to the shared backbone and the heads",
        "s_init": "README: a recommended starting point is -20; args.py has -30.5",
        "threshold_weight_decay": "released code: that of the weights, main/trainer.py:36",
        "eps": "torch's default, as in the released code; it decides how far unused weights decay",
        "travel": "args.py, NYU-v2: 1e-3, halved every 4000 of 20,000 steps",
        "latch": "released code, main/trainer.py:175-192: thresholds move again if the sparsity falls back",
        "exact_finalize": "not in the released code",
        "weighting.begin": "released code, main/trainer.py:29: 5000 of 20,000 steps",
        "weighting.window": "released code, main/trainer.py:31: 500 of 20,000 steps",
        "weighting.relative": "released code, main/trainer.py:138; the absolute difference is commented out",
        "checkpoint": "README, option 1: training from scratch",
        "variant": "release: args.py; from-trained: README, option 2; short: see the text above",
    },
)


@hookimpl
def register_methods(register: Register) -> None:
    """Register the methods."""
    register(ADAPMTL)
    register(
        replace(
            ADAPMTL,
            name="adapmtl-single-threshold",
            description="AdapMTL with one soft threshold for the whole network, an ablation.",
            group_by="network",
            sources={
                **ADAPMTL.sources,
                "group_by": "our reading of 'w/o adaptive thresholds' in table 2, which is nowhere defined",
            },
        )
    )
