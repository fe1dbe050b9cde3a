"""Networks that are not pruned: the baselines of every comparison."""

from mtlprune_bench import Method, Register, hookimpl, never


@hookimpl
def register_methods(register: Register) -> None:
    """Register the methods."""
    register(Method(name="dense", description="The unpruned network.", schedule=never()))
    register(
        Method(
            name="dense-single-task",
            description="One unpruned network for each task, with nothing shared.",
            schedule=never(),
            network="single-task",
            sources={"network": "the baseline of multitask papers; each is the multitask network with one head"},
        )
    )
    register(
        Method(
            name="dense-small",
            description="A control: a dense network with narrower layers and as many weights as pruned ones keep.",
            schedule=never(),
            network="small",
            sources={"network": "all widths scaled by one factor, the largest that has few enough weights"},
        )
    )
