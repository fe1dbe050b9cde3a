"""DiSparse static: score weights for each task alone at initialisation, and let an arbiter decide on shared ones.

Equations 6 to 9 and 18 of the paper. The released code (SHI-Labs/DiSparse-Multitask-Model-Compression) keeps
a fixed fraction for each task, found by hand for each dataset and sparsity: for NYU-v2 0.08, 0.257, 0.46 and
0.675 at sparsities 0.9, 0.7, 0.5 and 0.3. Here the fraction is settled so that the sparsity is exact. With
`--set method.variant=release` the mask rule and the forward passes are the released code's; give its fraction
by `--set method.calibration.keep_ratio=0.08`.
"""

from mtlprune_bench import AT_INIT, OR, PER_TASK, FixedRatio, Method, Register, hookimpl, once, saliency


@hookimpl
def register_methods(register: Register) -> None:
    """Register the method."""
    score = saliency(batches=50, init="xavier", mode="train", merge="absolute")
    register(
        Method(
            name="disparse-static",
            paper="https://arxiv.org/abs/2206.04662",
            score=score,
            scope=PER_TASK,
            arbiter=OR,
            schedule=once(),
            start=AT_INIT,
            variants={
                "release": {
                    "score": saliency(batches=50, init="xavier", forward="per-voter"),
                    "calibration": FixedRatio(),
                }
            },
            sources={
                "score.batches": "DiSparse, section 4.4: 50 random batches",
                "score.init": "released code, prune_utils.py:37; the paper is silent",
                "score.mode": "released code: batch statistics and dropout are on while scoring",
                "score.merge": "released code, prune_utils.py:80-85; equation 6 has no batches",
                "scope": "DiSparse, section 3.2",
                "arbiter": "DiSparse, equation 18",
                "calibration": "DiSparse, section 4.7, solved instead of searched",
            },
        )
    )
