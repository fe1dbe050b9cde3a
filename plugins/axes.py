"""The built-in values of a method's axes: scorers, arbiters, schedules and allocations."""

from mtlprune_bench import (
    OR,
    Erk,
    Global,
    Majority,
    Quorum,
    Register,
    Unanimous,
    Uniform,
    cubic,
    every,
    gradient,
    gradient_flow,
    hookimpl,
    levels,
    magnitude,
    never,
    noise,
    once,
    saliency,
)


@hookimpl
def register_scorers(register: Register) -> None:
    """Register the scorers."""
    for scorer in (noise(), magnitude(), gradient(), saliency(), gradient_flow()):
        register(scorer)


@hookimpl
def register_arbiters(register: Register) -> None:
    """Register the arbiters."""
    for arbiter in (OR, Unanimous(), Majority("keep"), Majority("prune"), Quorum()):
        register(arbiter)


@hookimpl
def register_schedules(register: Register) -> None:
    """Register the schedules."""
    for schedule in (never(), once(), every(), cubic(), levels()):
        register(schedule)


@hookimpl
def register_allocations(register: Register) -> None:
    """Register the allocations."""
    for allocation in (Global(), Uniform(), Erk()):
        register(allocation)
