"""STR: a soft threshold for each layer, trained together with the weights.

A weight W counts as sign(W) max(|W| - sigmoid(s), 0), s one number for each layer. STR was made for one task;
here it is trained on the weighted total loss. Departures from the authors' code (RAIVNLab/STR):
- Adam by the dataset's recipe, as for every method; there SGD with momentum 0.875, for ResNet-50 on ImageNet.
- They choose s and weight decay by trial until the sparsity is right (s -3200 and weight decay 2.25e-5 for
  90.23 %). Weight decay under SGD takes away a fraction of s a step, which brings even -3200 near 0; under Adam
  it takes away about one learning rate, so that s has to begin near where it acts, and -20 is AdapMTL's. With
  `--set method.variant=release`, their numbers, Adam leaves the network dense.
- The thresholds stand still while the sparsity is at least the one asked for; there nothing stops them. The
  masks are what is not zero at the end: near that sparsity, and exact with `--set method.exact_finalize=true`.
"""

from mtlprune_bench import LearnedMethod, Register, hookimpl


@hookimpl
def register_methods(register: Register) -> None:
    """Register the method."""
    register(
        LearnedMethod(
            name="str",
            description="STR: a soft threshold for each layer, trained with the weights.",
            paper="https://arxiv.org/abs/2002.03231",
            group_by="layer",
            s_init=-20.0,
            travel=7.75,
            variants={
                "release": {"s_init": -3200.0, "threshold_weight_decay": 2.251757813e-5},
                "short": {"s_init": -8.0, "threshold_weight_decay": 0.1, "exact_finalize": True},
            },
            sources={
                "group_by": "STR's code, utils/conv_type.py: one s in each convolution",
                "s_init": "AdapMTL's, which trains by Adam; STR's -3200 (configs/largescale/resnet50-str.yaml) is "
                "for SGD",
                "threshold_weight_decay": "STR's code: that of the weights, unless st_decay says otherwise",
                "travel": "AdapMTL's, as s_init",
                "latch": "not in STR: nothing stops its thresholds",
                "exact_finalize": "not in STR",
                "weighting": "STR has one task",
                "variant": "release: configs/largescale/resnet50-str.yaml, for 90.23 % of ResNet-50 on ImageNet; "
                "short: as in adapmtl",
            },
        )
    )
