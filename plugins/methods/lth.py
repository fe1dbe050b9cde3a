"""The lottery ticket hypothesis: prune what is small after training, and train the rest from where it began.

`lth` finds the ticket in one shot, which is what DiSparse and AdapMTL compare with; `lth-iterative` in rounds
of training that each remove a fifth of the weights left. Late rewinding: `--set method.start.rewind=STEP`;
training then goes on with that step. The authors' later code (facebookresearch/open_lth) removes one weight
more a round than it asks for; here counts are exact.
"""

from mtlprune_bench import JOINT, REWOUND, Method, Register, hookimpl, levels, magnitude, once


@hookimpl
def register_methods(register: Register) -> None:
    """Register the methods."""
    paper = "https://arxiv.org/abs/1803.03635"
    sources = {
        "allocation": "open_lth: one threshold for all layers; DiSparse does not state it",
        "start": "Frankle and Carbin, section 1; rewinding to a later step: arXiv:1912.05671",
    }
    register(
        Method(
            name="lth",
            description="The lottery ticket found in one shot: train, prune, rewind, train again.",
            paper=paper,
            score=magnitude(),
            scope=JOINT,
            schedule=once(),
            start=REWOUND,
            sources=sources,
        )
    )
    register(
        Method(
            name="lth-iterative",
            description="The lottery ticket found in rounds, each a whole training.",
            paper=paper,
            score=magnitude(),
            scope=JOINT,
            schedule=levels(rate=0.2),
            start=REWOUND,
            sources={**sources, "schedule.rate": "Frankle and Carbin, section 2: 20 % a round"},
        )
    )
