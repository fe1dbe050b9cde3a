"""The contract: every registered method passes every check, and every check can fail."""

import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mtlprune_bench import (
    OR,
    PER_TASK,
    Group,
    Method,
    Update,
    UsageError,
    noise,
    once,
    testing,
    untouched,
    voter_gradients,
)
from mtlprune_bench.pruning.thresholds import Learner
from mtlprune_bench.runs import costs as costs_module
from mtlprune_bench.runs import run as run_module
from mtlprune_bench.runs import stages as stages_module
from mtlprune_bench.runs.config import Engine
from mtlprune_bench.runs.observe import Observers
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.run import execute
from mtlprune_bench.runs.suite import prepare_all
from mtlprune_bench.store import Store, read_rows, write_rows
from mtlprune_bench.testing import ASKED, CHECKS, TINY, load_registry, register_tiny
from mtlprune_bench.training import networks as networks_module
from mtlprune_bench.training.checkpoint import MASKS, WEIGHTS, load_masks, load_tensors, save_masks, save_tensors
from mtlprune_bench.training.state import State

REGISTRY = load_registry([str(Path(__file__).parent / "toy_plugin.py")])

FASTER = {
    "disparse-pretrained": {"method": {"score": {"batches": 2}}},
    "disparse-static": {"method": {"score": {"batches": 2}}},
    "imp": {"method": {"schedule": {"rounds": 3, "steps": 2}}},
    "lth-iterative": {"method": {"schedule": {"rate": 0.5}}},
    "synflow": {"method": {"rounds": 3}},
    "toy-late": {"train": {"steps": 12}},
}
"""Settings for methods that would take long, or need a longer training than the tiny one."""

ALSO = [
    # Thresholds that reach the sparsity within a few steps, near it and to the weight.
    ("adapmtl", {"method": {"s_init": -4}}),
    ("adapmtl", {"method": {"s_init": -4, "exact_finalize": True}}),
    # Weights that are hidden, an arbiter under which fewer grow than were dropped, a rewound step.
    ("disparse-dynamic", {"method": {"variant": "release"}}),
    ("disparse-dynamic", {"method": {"arbiter": "and"}}),
    ("lth", {"method": {"start": {"rewind": 3}}}),
]

PER_TASK_TOO = {"method": {"scope": "per-task", "arbiter": "or"}}
"""Settings by which a method has a voter for each task, and claims that the scale of losses does not matter."""

CASES = [(entry.name, FASTER.get(entry.name)) for entry in REGISTRY.of_kind("methods")] + ALSO


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder in which the checks of all methods share runs."""
    return tmp_path_factory.mktemp("contract")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    ("method", "settings"), CASES, ids=[f"{n}-{method}" for n, (method, _) in enumerate(CASES)]
)
def test_every_method_passes(method, settings, check, folder):
    check(method, REGISTRY, folder, settings)


# Broken methods, and what the check says of each.


@dataclass(frozen=True)
class Scorer:
    """Scores by a function."""

    rule: Callable
    declared: tuple = (0, 0)
    name: str = "by-rule"

    def passes(self, voters):
        return self.declared

    def __call__(self, scoring):
        return self.rule(scoring)


@dataclass(frozen=True)
class Schedule:
    """Has given updates; their sparsities are fractions of the one asked for."""

    updates: tuple
    name: str = "given"

    def plan(self, sparsity, recipe):
        return tuple(replace(update, sparsity=update.sparsity * sparsity) for update in self.updates)


class Claiming(Scorer):
    """Claims that the scale of losses does not matter."""

    scale_free = True


def pruned_by(rule, **more):
    """Return a method that scores by `rule(scoring)`."""
    return Method(name="broken", **{"score": Scorer(rule), "schedule": once(), **more})


def voted_by(rule, **more):
    """Return a method with a voter for each task."""
    return pruned_by(rule, **{"scope": PER_TASK, "arbiter": OR, **more})


def grown_by(rule):
    """Return a method that grows by `rule(scoring)`."""
    return replace(REGISTRY.get("methods", "rigl"), name="broken", grow=Scorer(rule))


def planned(*updates):
    """Return a method with these updates: steps and fractions of the sparsity asked for."""
    made = tuple(update if isinstance(update, Update) else Update(*update) for update in updates)
    return Method(name="broken", score=noise(), schedule=Schedule(made), grow=noise())


def each(scoring, score):
    """Return `score(weight)` for every weight of every voter."""
    return {
        voter.name: {name: score(scoring.weights[name].detach()) for name in voter.weights}
        for voter in scoring.voters
    }


def magnitude(scoring):
    return each(scoring, torch.abs)


def doing(act):
    """Return a rule that does `act(scoring)` and then scores by magnitude."""

    def rule(scoring):
        act(scoring)
        return magnitude(scoring)

    return rule


def backward(scoring):
    scoring.losses(scoring.current)["light"].backward()


def change_weight(scoring):
    next(iter(scoring.weights.values())).data[0] += 1


def replace_weight(scoring):
    scoring.model.unused.weight = torch.nn.Parameter(scoring.model.unused.weight.detach().clone())


def first_voter(scoring):
    return dict([next(iter(magnitude(scoring).items()))])


def first_weights(scoring):
    return {voter: dict(list(own.items())[:-1]) for voter, own in magnitude(scoring).items()}


def every_weight(scoring):
    """Score, for each voter, the weights that it does not see too."""
    scores = {name: weight.detach().abs() for name, weight in scoring.weights.items()}
    return {voter.name: scores for voter in scoring.voters}


def whole_network(scoring):
    """Score, for each voter, a layer that no task uses too."""
    unused = scoring.model.unused.weight.detach()
    return {voter: {**own, "unused.weight": unused} for voter, own in magnitude(scoring).items()}


CALLS = []


def by_calls(scoring):
    """Score by how often scoring was asked for in this process."""
    CALLS.append(1)
    generator = torch.Generator().manual_seed(len(CALLS))
    return each(scoring, lambda weight: torch.rand(weight.shape, generator=generator))


def drawn(draw):
    """Return a rule that scores by `draw(shape)`, from a global generator."""
    return lambda scoring: each(scoring, lambda weight: torch.as_tensor(draw(weight.shape)))


def draw_by_python(shape):
    return np.reshape([random.random() for _ in range(shape.numel())], shape)


def by_position(scoring):
    return each(scoring, lambda weight: torch.arange(weight.numel()).view(weight.shape).double())


def passing(forward, backward_passes):
    """Return a rule that makes passes."""

    def rule(scoring):
        for _ in range(forward):
            loss = sum(scoring.losses(scoring.current).values())
        for _ in range(backward_passes):
            torch.autograd.grad(loss, list(scoring.weights.values()), retain_graph=True)
        return magnitude(scoring)

    return rule


def by_place(scoring):
    """Score by the place of a voter among all."""
    return {
        voter.name: {name: scoring.weights[name].detach().abs() * place for name in voter.weights}
        for place, voter in enumerate(scoring.voters, 1)
    }


def from_one_generator(scoring):
    """Draw for one voter after the other."""
    generator = scoring.generator("all")
    return each(scoring, lambda weight: torch.rand(weight.shape, generator=generator))


def by_first_loss(scoring):
    """Score by the loss that comes first."""
    with untouched(scoring.model):
        first = float(next(iter(scoring.losses(scoring.current).values())).detach())
    return each(scoring, lambda weight: weight.abs() * first)


def with_decay(scoring):
    """Add something that the loss has no part in."""
    with untouched(scoring.model):
        voted = voter_gradients(scoring.losses, scoring.current, scoring.voters, scoring.weights)
        return {
            voter.name: {
                name: gradient.abs() + scoring.weights[name].detach().abs()
                for name, gradient in zip(voter.weights, gradients, strict=True)
            }
            for voter, gradients in voted
        }


def favourite(ranks):
    """Do as the first task likes."""
    return ranks[0]


def not_a_number(weight):
    """Divide by the weight, which is what pruned ones cannot stand."""
    return (weight / weight).abs()


@dataclass(frozen=True)
class Stingy:
    """An allocation that keeps a weight too few, or leaves layers out."""

    spare: int = 1
    left_out: int = 0
    name: str = "stingy"

    def groups(self, shapes, kept):
        return (Group(tuple(shapes)[self.left_out :], kept - self.spare),)


FULL = (0, 1.0)
BROKEN = [
    # The last update asks for half of the sparsity; the allocation keeps too few.
    ("check_sparsity", planned((0, 0.5)), r"keeps 718 of 1026 weights at sparsity 0.6, which leaves 410"),
    ("check_sparsity", pruned_by(magnitude, allocation=Stingy()), r"reached .* 1025 weights are kept"),
    ("check_seeds", pruned_by(drawn(torch.rand)), r"other masks when a run is repeated with its seed"),
    ("check_seeds", pruned_by(drawn(lambda shape: np.random.rand(*shape))), r"other masks when a run is repeated"),
    ("check_seeds", pruned_by(drawn(draw_by_python)), r"other masks when a run is repeated"),
    ("check_seeds", pruned_by(by_position), r"the same masks for two seeds.*scoring.generator"),
    (
        "check_trace",
        pruned_by(doing(change_weight)),
        r"changes parameter 'trunk.0.weight' while scoring by method.score",
    ),
    ("check_trace", pruned_by(doing(replace_weight)), r"changes parameter 'unused.weight'"),
    ("check_trace", pruned_by(doing(backward)), r"changes .*the gradient of 'branch.0.bias'"),
    (
        "check_trace",
        pruned_by(doing(lambda s: s.losses(s.current))),
        r"changes buffer 'branch.1.num_batches_tracked'",
    ),
    ("check_trace", pruned_by(doing(lambda s: s.model.eval())), r"changes the training flag of 'branch'"),
    ("check_trace", pruned_by(doing(lambda s: s.model.train())), r"changes the training flag of 'trunk'"),
    (
        "check_trace",
        pruned_by(doing(lambda s: s.model.branch.requires_grad_(False))),
        r"changes parameter 'branch",
    ),
    (
        "check_trace",
        pruned_by(doing(lambda s: s.model.register_forward_hook(print))),
        r"changes the hooks of the network",
    ),
    ("check_trace", pruned_by(doing(lambda s: s.current.images.zero_())), r"changes the batch trained on"),
    ("check_trace", pruned_by(drawn(torch.rand)), r"changes torch's global generator"),
    ("check_trace", pruned_by(drawn(draw_by_python)), r"changes Python's global generator"),
    ("check_trace", pruned_by(drawn(lambda shape: np.random.rand(*shape))), r"changes numpy's global generator"),
    (
        "check_trace",
        grown_by(doing(change_weight)),
        r"changes parameter .* while scoring by method.grow.*untouched",
    ),
    ("check_plan", planned((4, 1.0), (2, 1.0)), r"before steps \[4, 2\], which go back"),
    ("check_plan", planned((-1, 1.0)), r"plans updates outside of training"),
    ("check_plan", planned(FULL, (8, 1.0)), r"plans updates outside of training"),
    ("check_plan", planned(FULL, Update(8, 1.0, restart=True), (16, 1.0)), r"plans updates outside of training"),
    ("check_plan", planned((0, 1 / 0.6)), r"outside of \[0, 1\): \[1.0, "),
    ("check_plan", planned(FULL, Update(2, 1.0, regrow=1.0)), r"outside of \[0, 1\)"),
    ("check_plan", planned(FULL, (2, 0.5), (4, 1.0)), r"prunes to sparsities \[0.6, 0.3, 0.6\], which go back"),
    ("check_plan", planned((0, 0.5)), r"ends at sparsity 0.3 instead of 0.6.*Correct plan"),
    ("check_plan", planned(), r"has a plan without updates"),
    (
        "check_scores",
        pruned_by(lambda s: each(s, not_a_number)),
        r"not finite, by method.score, for voter 'all tasks'.*divisions",
    ),
    (
        "check_scores",
        pruned_by(lambda s: each(s, lambda w: w.abs().log())),
        r"gives 'trunk.0.weight' scores that are not finite",
    ),
    (
        "check_scores",
        pruned_by(lambda s: each(s, lambda w: w.abs().sum((1, 2, 3)))),
        r"of shape \(9,\) instead of",
    ),
    ("check_scores", pruned_by(first_voter), r"does not score, by method.score, just the weights .*'contrast'"),
    ("check_scores", pruned_by(first_weights), r"does not score, by method.score, just the weights"),
    ("check_scores", pruned_by(every_weight), r"does not score, by method.score, just the weights"),
    ("check_scores", pruned_by(whole_network), r"does not score, by method.score, just the weights"),
    ("check_scores", grown_by(lambda s: each(s, not_a_number)), r"not finite, by method.grow"),
    ("check_observers", grown_by(drawn(torch.rand)), r"other masks when an observer meddles"),
    (
        "check_resume",
        grown_by(by_calls),
        r"other masks when it is killed and run again.*keep nothing between calls",
    ),
    (
        "check_costs",
        pruned_by(passing(1, 0)),
        r"declares \(0, 0\) forward .* for 1 voters, by method.score, and makes \(1, 0\)",
    ),
    ("check_costs", pruned_by(passing(1, 2)), r"declares \(0, 0\) .* makes \(1, 2\).*Correct passes"),
    (
        "check_costs",
        grown_by(passing(2, 1)),
        r"declares \(0, 0\) .* for 1 voters, by method.grow, and makes \(2, 1\)",
    ),
    ("check_arbiters", pruned_by(first_voter), r"does not get through check_arbiters: "),
    (
        "check_order",
        pruned_by(by_place),
        r"other scores for voter 'colour', .* where the tasks are listed backwards",
    ),
    ("check_order", pruned_by(from_one_generator), r"other scores for voter 'colour'.*generator\(voter.name\)"),
    ("check_order", grown_by(by_first_loss), r"other scores for voter 'all tasks', by method.grow"),
    (
        "check_scale",
        voted_by(with_decay),
        r"ranks weights otherwise for voter 'colour', by method.score.*scale_free",
    ),
    (
        "check_scale",
        pruned_by(magnitude, score=Claiming(with_decay)),
        r"ranks weights otherwise for voter 'colour'",
    ),
    ("check_merging", voted_by(magnitude, arbiter=favourite), r"Let no task be special"),
    ("check_groups", pruned_by(magnitude, allocation=Stingy()), r"shares out 1025 weights .* instead of 1026"),
    ("check_groups", pruned_by(magnitude, allocation=Stingy(spare=-1)), r"keeps 1027 of the 1026 weights"),
    (
        "check_groups",
        pruned_by(magnitude, allocation=Stingy(left_out=1)),
        r"in no group of its allocation",
    ),
    ("check_arbiters", pruned_by(magnitude, allocation=Stingy()), r"SparsityError: .* reached"),
]


def registry_of(method):
    """Return a registry with `method` beside the others."""
    registry = replace(REGISTRY, entries=dict(REGISTRY.entries))
    registry.add("methods", method, "test", "test", None)
    return registry


@pytest.mark.parametrize(
    ("check", "method", "said"), BROKEN, ids=[f"{n}-{row[0]}" for n, row in enumerate(BROKEN)]
)
def test_a_broken_method_does_not_pass(check, method, said, tmp_path):
    with pytest.raises(AssertionError, match=said) as caught:
        getattr(testing, check)("broken", registry_of(method), tmp_path)
    assert str(caught.value).startswith("Method 'broken' ")


@pytest.mark.parametrize(
    ("method", "checks"),
    [
        (pruned_by(magnitude), CHECKS),
        (grown_by(magnitude), [testing.check_observers, testing.check_resume, testing.check_costs]),
        (planned((0, 0.5), (2, 1.0)), [testing.check_sparsity, testing.check_plan]),
    ],
)
def test_what_is_broken_above_passes_where_it_is_mended(method, checks, tmp_path):
    for check in checks:
        check("broken", registry_of(method), tmp_path)


# A broken engine.


def fails(check, method, folder, said, settings=None):
    """Assert that a check fails, and what it says."""
    with pytest.raises(AssertionError, match=said) as caught:
        getattr(testing, f"check_{check}")(method, REGISTRY, folder, settings)
    assert str(caught.value).startswith(f"Method '{method}' ")


def test_a_run_that_fails_is_reported_with_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "evaluate", None)
    fails("sparsity", "random", tmp_path, r"(?s)fails at sparsity 0.0: TypeError.*Its traceback:.*in _measure")


@pytest.fixture
def finished(tmp_path):
    """Return the folder of the run of magnitude pruning that checks share, and which has passed."""
    testing.check_sparsity("magnitude", REGISTRY, tmp_path)
    (folder,) = (tmp_path / "runs").glob(f"magnitude-{TINY}-{ASKED}-*")
    return folder


def test_masks_that_were_changed_are_found(tmp_path, finished):
    masks = load_masks(finished / MASKS)
    masks["trunk.0.weight"].logical_not_()
    save_masks(finished / MASKS, masks)
    fails("sparsity", "magnitude", tmp_path, r"keeps \d+ of 1026 weights at sparsity 0.6, which leaves 410")
    fails("seeds", "magnitude", tmp_path, "gives other masks")


def test_weights_that_were_changed_are_found(tmp_path, finished):
    weights, facts = load_tensors(finished / WEIGHTS)
    weights["branch.0.weight"] += 1e-9
    save_tensors(finished / WEIGHTS, weights, facts)
    fails("sparsity", "magnitude", tmp_path, r"weights in 'branch.0.weight' .* remove and that are not zero")
    fails("seeds", "magnitude", tmp_path, "gives other weights")


@pytest.mark.parametrize("metric", ["sparsity", "loss", "forward"])
def test_rows_that_were_changed_are_found(tmp_path, finished, metric):
    rows = read_rows(finished)
    changed = next(row for row in rows if row["metric"] == metric)
    changed["value"] += 1
    write_rows(finished, rows)
    fails("seeds", "magnitude", tmp_path, rf"gives other rows \({metric} is ")
    if metric != "loss":
        check = {"sparsity": "sparsity", "forward": "costs"}[metric]
        fails(check, "magnitude", tmp_path, r"states .* in its rows, and (has|takes)")


def test_time_may_differ(tmp_path, finished):
    rows = read_rows(finished)
    for row in rows:
        row["value"] += row["metric"] in ("seconds", "peak_memory")
    write_rows(finished, rows)
    testing.check_seeds("magnitude", REGISTRY, tmp_path)


def test_a_network_that_is_not_small_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(networks_module, "small_settings", lambda model, channels, settings, sparsity: settings)
    fails("sparsity", "dense-small", tmp_path, r"keeps 1026 of 1026 weights at sparsity 0.6, which leaves 410")


def test_learned_masks_that_keep_zeros_are_found(tmp_path, monkeypatch):
    finish = Learner.finish
    monkeypatch.setattr(
        Learner, "finish", lambda learner: {name: mask | True for name, mask in finish(learner).items()}
    )
    fails("sparsity", "adapmtl", tmp_path, "masks keep and that are zero", {"method": {"s_init": -4}})


def test_observers_that_are_given_the_masks_themselves_are_found(tmp_path, monkeypatch):
    def masks_updated(observers, step, before, after):
        observers._tell("masks_updated", step=step, before=before, after=dict(after))

    monkeypatch.setattr(Observers, "masks_updated", masks_updated)
    fails("observers", "rigl", tmp_path, "when an observer meddles|does not get through|fails at sparsity")


def test_a_checkpoint_without_moments_is_found(tmp_path, monkeypatch):
    resume = State.resume

    def forgetful(state, folder):
        resume(state, folder)
        state.optimizer.state.clear()

    monkeypatch.setattr(State, "resume", forgetful)
    fails("resume", "snip", tmp_path, "gives other weights when it is killed and run again")


def test_files_that_round_are_found(tmp_path, monkeypatch):
    def rounded(path, tensors, facts):
        save_tensors(path, {name: tensor.half().to(tensor.dtype) for name, tensor in tensors.items()}, facts)

    monkeypatch.setattr(stages_module, "save_tensors", rounded)
    fails("store", "snip", tmp_path, "other masks or weights in its files than in memory")


def test_a_finished_run_that_is_run_again_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "read_rows", lambda folder: None)
    fails("store", "snip", tmp_path, "is run once more although the store has its rows")


def test_a_run_that_states_too_few_steps_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(
        costs_module, "_training", lambda *facts: costs_module.Part("training", costs_module.Cost())
    )
    fails("costs", "dense", tmp_path, r"states {'steps': 0, 'forward': 0.* and takes {'steps': 8, 'forward': 8")


def test_masks_that_are_not_sparse_under_an_arbiter_are_found(tmp_path, monkeypatch):
    def keep_all(method, scoring, target):
        return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in scoring.weights.items()}

    monkeypatch.setattr(testing.masking, "make_masks", keep_all)
    fails("arbiters", "snip", tmp_path, "keeps 1026 weights instead of 410 under arbiter 'or'")


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow", "magnitude", "random"])
def test_every_score_is_free_of_the_scale_of_losses_where_tasks_vote(method, tmp_path):
    assert testing.check_scale(method, REGISTRY, tmp_path, PER_TASK_TOO) is None
    assert "does not claim" in testing.check_scale(method, REGISTRY, tmp_path)


def test_a_scorer_may_give_up_the_claim(tmp_path):
    disclaiming = type("Disclaiming", (Scorer,), {"scale_free": False})(with_decay)
    registry = registry_of(voted_by(with_decay, score=disclaiming))
    assert "does not claim" in testing.check_scale("broken", registry, tmp_path)


def test_every_check_is_seen_to_fail():
    code = Path(__file__).read_text()
    for check in CHECKS:
        name = check.__name__
        shown = f'"{name}",' in code or f'fails("{name.removeprefix("check_")}"' in code
        assert shown or f"testing.{name}(" in code, f"{name} is never shown to fail"
    assert {check.__name__ for check in CHECKS} == {check for check, _, _ in BROKEN} | {"check_store"}


# The suite itself.


def test_checks_leave_generators_and_registry_as_they_were(tmp_path):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    observers = REGISTRY.manager.get_plugins()
    for check in CHECKS:
        check("rigl", REGISTRY, tmp_path)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert REGISTRY.manager.get_plugins() == observers
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_an_unknown_method_is_said_to_be_unknown(tmp_path):
    fails("plan", "magnitud", tmp_path, "Did you mean 'magnitude'?")


# The engine, beyond the contract.


def prepared(name, **settings):
    register_tiny(REGISTRY)
    request = Request(method=name, dataset=TINY, sparsity=ASKED, seed=0, protocol="disparse", settings=settings)
    (experiment,) = prepare_all([request], REGISTRY, lambda text: None)
    return experiment


@pytest.mark.parametrize("method", ["gmp", "disparse-dynamic"])
def test_the_checkpoint_that_a_protocol_selects_has_the_sparsity_asked_for(method, tmp_path):
    rows = execute(prepared(method, train={"select_every": 3}), Store(tmp_path), REGISTRY, Engine(device="cpu"))
    (reached,) = (row["value"] for row in rows if (row["metric"], row["component"]) == ("sparsity", "whole"))
    assert reached == pytest.approx(ASKED, abs=1e-3)


def test_a_plan_with_updates_before_the_step_that_weights_are_rewound_to_is_refused():
    with pytest.raises(UsageError, match="rewind"):
        prepared("lth", method={"start": {"rewind": 6}, "schedule": {"step": 2}})


# The documentation.


def test_the_documented_test_file_works_as_printed(tmp_path):
    """Run the page's first test on the plugin of the README."""
    root = Path(__file__).parents[1]
    page, readme = ((root / name).read_text() for name in ("docs/testing.md", "README.md"))
    plugin = re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1]
    (tmp_path / "my_method.py").write_text(plugin.replace('name="largest"', 'name="my-method"'))
    (tmp_path / "test_mine.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    command = re.search(r"\npython (-m pytest .*)\n", page)[1].split()
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True)
    assert "1 passed" in done.stdout, done.stdout


def test_every_check_is_documented():
    page = (Path(__file__).parents[1] / "docs/testing.md").read_text()
    assert all(f"`{check.__name__}`" in page for check in CHECKS)
    for kind, checks in testing.CONTRACTS.items():
        rows = re.search(rf"^\| {kind} \|.*?(?=^\| \w|^\n|\Z)", page, re.MULTILINE | re.DOTALL)
        named = set(re.findall(r"`(\w+)`", rows[0])) if rows else set()
        assert kind == "methods" or named >= {check.__name__.removeprefix("check_") for check in checks}, kind
