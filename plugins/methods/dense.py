"""The unpruned network: the baseline of every comparison."""

from mtlprune_bench import Method, Register, hookimpl, never


@hookimpl
def register_methods(register: Register) -> None:
    """Register the method."""
    register(Method(name="dense", schedule=never()))
