"""Methods that prune while or between training: what their runs do to masks, weights and moments, step by step."""

import contextlib
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from references import regrow as reference

from mtlprune_bench import Erk, Method, Recipe, Sample, Splits, Update, UsageError, hookimpl, noise
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.pruning.components import discover, prunable
from mtlprune_bench.pruning.masks import kept_count, sparsity
from mtlprune_bench.pruning.prune import make_masks
from mtlprune_bench.pruning.regrow import regrow_masks
from mtlprune_bench.runs import pipeline
from mtlprune_bench.runs.config import Engine
from mtlprune_bench.runs.costs import kept_cost
from mtlprune_bench.runs.pipeline import START_MASKS
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.stages import Stages
from mtlprune_bench.runs.suite import prepare_all, run_all
from mtlprune_bench.store import Store, read_history, read_rows
from mtlprune_bench.training import train as loop
from mtlprune_bench.training.checkpoint import MASKS, WEIGHTS, load_masks, load_tensors
from mtlprune_bench.training.state import make_optimizer, weights_of

PLUGIN = str(Path(__file__).parents[1] / "toy_plugin.py")
SILENT = {"notify": lambda text: None}
STEPS = 16
UPDATES = [0, 5, 10, 12]
"""When masks are updated: every 5 steps, and a last time after three quarters of 16."""


@pytest.fixture(scope="module", autouse=True)
def _no_look_at_the_machine():
    """Leave out what takes a tenth of such a short run, and is tested with the runs themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtlprune_bench.runs.run.environment", lambda device: {})
        yield


@pytest.fixture(scope="module")
def registry():
    return load_registry([PLUGIN])


def request(name, asked=0.8, dataset="toy", **settings):
    """Return a request for a short run on small batches."""
    settings["train"] = {"steps": STEPS, "batch": "2", "crop": "8", **settings.get("train", {})}
    return Request(method=name, dataset=dataset, sparsity=asked, seed=0, settings=settings)


def run(store, registry, *requests):
    """Execute requests and return the folder of each run."""
    outcomes = list(run_all(requests, Store(store), registry, **SILENT))
    assert all(outcome.good for outcome in outcomes), outcomes
    return [store / experiment.config.run_id for experiment in prepare_all(requests, registry, **SILENT)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, registry):
    """Return what gives the folder of a run that nothing watches or breaks off; each is made once."""
    store = tmp_path_factory.mktemp("store")
    return lambda asked: run(store, registry, asked)[0]


def untrained(registry, asked, purpose="init"):
    """Return the network that a request trains, as it is before any step."""
    (experiment,) = prepare_all([asked], registry, **SILENT)
    return experiment.build_model(torch.device("cpu"), purpose)


def copies(model):
    return {name: tensor.detach().clone() for name, tensor in weights_of(model).items()}


def sparsity_rows(folder):
    return {row["component"]: row["value"] for row in read_rows(folder) if row["metric"] == "sparsity"}


@dataclass
class Training:
    """What a spy has seen of one training: weights and buffers, and the moments of weights."""

    made: dict  # as the training got the network
    first: dict | None = None  # before its first forward pass
    steps: int = 0
    last: dict | None = None  # after its last step


@dataclass
class Change:
    """What a spy has seen of one update: masks, and weights and moments by name, before and after."""

    step: int
    masks: tuple
    before: dict
    after: dict


class Spy:
    """Watches runs: an observer for the updates, and a look at each training's network and optimizer."""

    def __init__(self, monkeypatch):
        self.trainings, self.changes, self.stages = [], [], []
        self._model = self._optimizer = self._before = None
        monkeypatch.setattr(loop, "make_optimizer", self._make)

    def _make(self, model, recipe, learner):
        self._model, self._optimizer = model, make_optimizer(model, recipe, learner)
        training = Training(copies(model))
        self.trainings.append(training)

        def before_forward(module, inputs):
            if training.first is None:
                training.first = copies(model)
                hook.remove()

        def after_step(*_):
            training.steps += 1
            training.last = copies(model)
            self._before = self._state()

        hook = model.register_forward_pre_hook(before_forward)
        self._optimizer.register_step_post_hook(after_step)
        self._before = None
        return self._optimizer

    def _state(self):
        return {
            name: [weight.detach().clone()]
            + [
                self._optimizer.state[weight][key].clone()
                for key in ("exp_avg", "exp_avg_sq")
                if weight in self._optimizer.state
            ]
            for name, weight in self._model.named_parameters()
        }

    @hookimpl
    def run_started(self, run):
        self.stages.append(run.stage)

    @hookimpl
    def masks_updated(self, run, step, before, after):
        state = self._state()
        if self._before is None:  # before any step there are no moments, and removed weights are zero
            made = self.trainings[-1].made
            self._before = {name: [made[name] * before.get(name, 1)] for name in state}
        self.changes.append(Change(step, (before, after), self._before, state))
        self._before = state


@pytest.fixture
def spy(monkeypatch):
    return Spy(monkeypatch)


@pytest.fixture
def watched(registry, spy):
    with observed(registry, spy):
        yield registry


@contextlib.contextmanager
def observed(registry, observer):
    """Have an observer told of all runs while the context lasts."""
    registry.manager.register(observer)
    try:
        yield
    finally:
        registry.manager.unregister(observer)


@pytest.fixture(scope="module")
def followed(tmp_path_factory, registry):
    """Return what gives the folder of a run by a method as registered, and the spy that has watched it."""
    made = {}

    def follow(name):
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                spy = Spy(patch)
                with observed(registry, spy):
                    made[name] = run(tmp_path_factory.mktemp(name), registry, request(name))[0], spy
        return made[name]

    return follow


DYNAMIC = ["rigl", "set", "disparse-dynamic"]


@pytest.mark.parametrize(
    ("name", "grown"), [("rigl", "zero"), ("rigl", "kept"), ("set", "kept"), ("disparse-dynamic", "zero")]
)
def test_updates_leave_survivors_alone_to_the_bit_and_clear_what_is_new(tmp_path, watched, spy, name, grown):
    settings = {"method": {"grown": grown, "schedule": {"regrow": "0.6"}}}
    run(tmp_path, watched, request(name, **settings))
    delay, twice = int(name == "set"), 0
    assert [change.step for change in spy.changes] == [step + delay for step in UPDATES]
    targets = {weight: int(mask.sum()) for weight, mask in spy.changes[0].masks[0].items()}
    for change in spy.changes:
        before, after = change.masks
        last = change.step == UPDATES[-1] + delay
        fraction = 0.0 if last else reference.cosine_decay(0.6, change.step - delay, UPDATES[-1])
        for weight, present in change.after.items():
            old = change.before[weight]
            old = old if len(old) == len(present) else old + [torch.zeros_like(old[0])] * 2
            if weight not in after:
                assert all(map(torch.equal, old, present)), weight
                continue
            was, now = before[weight], after[weight]
            flat = (old[0].flatten().tolist(), was.flatten().tolist())
            survivors = torch.tensor(reference.drop(*flat, targets[weight], fraction)).view_as(now)
            regrown = was & now & ~survivors
            twice += int(regrown.sum())
            for values, earlier in zip(present, old, strict=True):
                assert not values[~now].any(), "removed: zero, and no moments"
                assert not values[now & ~was].any(), "grown: zero, and no moments"
                assert torch.equal(values[survivors], earlier[survivors])
                expected = earlier if grown == "kept" else torch.zeros_like(earlier)
                assert torch.equal(values[regrown], expected[regrown]), "dropped and regrown at once"
    assert twice > 0


@pytest.mark.parametrize("name", DYNAMIC)
def test_masks_keep_their_counts_and_change_by_no_more_than_is_dropped(followed, registry, name):
    folder, spy = followed(name)
    weights = prunable(untrained(registry, request(name)))
    alpha, power = (0.5, 0.9) if name == "disparse-dynamic" else (0.3, 1.0)
    kept = kept_count(sum(weight.numel() for weight in weights.values()), 0.8)
    shapes = {weight: tuple(tensor.shape) for weight, tensor in weights.items()}
    targets = {group.names[0]: group.kept for group in Erk(power=power).groups(shapes, kept)}
    shared = {weight for weight in weights if weight.startswith("trunk")}
    whole = {weight for weight, tensor in weights.items() if targets[weight] == tensor.numel()}
    assert whole, "in this network ERK leaves the small layers dense"
    assert {weight: int(mask.sum()) for weight, mask in load_masks(folder / START_MASKS).items()} == targets
    delay, excess, moved = int(name == "set"), 0, 0
    for change in spy.changes:
        before, after = change.masks
        last = change.step == UPDATES[-1] + delay
        fraction = 0.0 if last else reference.cosine_decay(alpha, change.step - delay, UPDATES[-1])
        for weight, target in targets.items():
            was, now = before[weight], after[weight]
            dropped = reference.number_dropped(target, fraction)
            if weight in whole:
                assert now.all()
                continue
            extra = int(now.sum()) - target
            voters = 2 if name == "disparse-dynamic" and weight in shared and not last else 1
            assert 0 <= extra <= (voters - 1) * dropped
            assert int((now & ~was).sum()) <= voters * dropped
            assert int((was & ~now).sum()) <= dropped + int(was.sum()) - target
            flat = (change.before[weight][0].flatten().tolist(), was.flatten().tolist())
            survivors = torch.tensor(reference.drop(*flat, target, fraction)).view_as(now)
            assert not (survivors & ~now).any(), "the largest of the weights that it had stay"
            if last:
                assert now.equal(survivors), "and at the last update nothing else does"
            moved += int((now & ~was).sum())
            excess += extra
    assert moved > 0
    assert (excess > 0) == (name == "disparse-dynamic"), "tasks have wanted different weights"
    masks = load_masks(folder / MASKS)
    assert all(torch.equal(mask, spy.changes[-1].masks[1][weight]) for weight, mask in masks.items())
    assert {weight: int(mask.sum()) for weight, mask in masks.items()} == targets


def test_rigl_and_set_begin_with_the_same_masks_and_grow_different_weights(followed):
    rigl, random = (followed(name)[1].changes for name in ("rigl", "set"))
    assert all(torch.equal(mask, random[0].masks[0][name]) for name, mask in rigl[0].masks[0].items())
    assert any((mask != random[-1].masks[1][name]).any() for name, mask in rigl[-1].masks[1].items())


def test_with_one_task_disparse_dynamic_is_rigl_to_the_bit(tmp_path, registry):
    asked = 0.7
    knobs = {
        "allocation": {"power": "0.9"},
        "schedule": {"regrow": "0.5"},
        "grow": {"batches": "0"},
        "grown": "zero",
    }
    rigl, disparse, plain = run(
        tmp_path,
        registry,
        request("rigl", asked, "toy-single", method=knobs),
        request("disparse-dynamic", asked, "toy-single"),
        request("rigl", asked, "toy-single"),
    )
    for name in (START_MASKS, MASKS, WEIGHTS):
        assert (rigl / name).read_bytes() == (disparse / name).read_bytes(), name
    assert list(read_history(rigl / "history.jsonl")) == list(read_history(disparse / "history.jsonl"))
    assert (rigl / MASKS).read_bytes() != (plain / MASKS).read_bytes()


def test_the_methods_are_registered_with_the_settings_of_their_papers(registry):
    rigl, random, disparse = (registry.get("methods", name) for name in DYNAMIC)
    assert (rigl.allocation, random.allocation, disparse.allocation) == (Erk(1.0), Erk(1.0), Erk(0.9))
    assert (rigl.schedule.regrow, random.schedule.regrow, disparse.schedule.regrow) == (0.3, 0.3, 0.5)
    assert [method.schedule.after for method in (rigl, random, disparse)] == [False, True, False]
    assert {method.schedule.decay for method in (rigl, random, disparse)} == {"cosine"}
    assert [method.grown for method in (rigl, random, disparse)] == ["kept", "kept", "zero"]
    assert [method.scope for method in (rigl, random, disparse)] == ["joint", "joint", "per-task"]
    assert {method.drop.name for method in (rigl, random, disparse)} == {"magnitude"}
    assert [method.grow.name for method in (rigl, random, disparse)] == ["gradient", "noise", "gradient"]
    assert disparse.variants["release"]["removed"] == "stale"
    assert disparse.variants["release"]["grow"].parts == 2


@pytest.mark.parametrize("name", ["rigl", "disparse-dynamic", "release"])
def test_the_batch_to_grow_by_is_as_stated(tmp_path, registry, monkeypatch, name):
    asked = chosen(name)
    (experiment,) = prepare_all([asked], registry, **SILENT)
    stages = Stages(experiment, Store(tmp_path), registry, Engine(), torch.device("cpu"))
    seen, own = {}, {}

    def record(method, scoring, update, current):
        used = seen[update.step] = []

        def losses(batch, *rest):
            used.append(batch.images)
            return scoring.losses(batch, *rest)

        (batch,) = scoring.batches(1)
        own[update.step] = batch.images
        return regrow_masks(method, replace(scoring, losses=losses), update, current)

    monkeypatch.setattr(pipeline, "regrow_masks", record)
    run(tmp_path, registry, asked)
    assert list(seen) == UPDATES
    for step, used in seen.items():
        (trained_on,) = (
            batch.images for batch in stages.batches(experiment.config.train, "training batches", step, 1)
        )
        assert not torch.equal(trained_on, own[step])
        if name == "rigl":
            assert len(used) == (step < UPDATES[-1]), "one voter has nothing to make up for at the end"
            assert all(torch.equal(images, own[step]) for images in used)
        elif name == "release":
            assert len(used) == 4, "two halves, and a pass for each task"
            assert torch.equal(used[0], used[1])
            assert torch.equal(torch.cat(used[::2]), trained_on)
        else:
            assert len(used) == 1
            assert torch.equal(used[0], trained_on)
    assert not torch.equal(own[0], own[5]), "another batch at each update"


CHOICES = {
    "rigl": {},
    "set": {},
    "disparse-dynamic": {},
    "release": {"variant": "release"},
    "and": {"arbiter": "and"},
    "global": {"allocation": "global"},
    "gmp": {},
    "gmp-stale": {"removed": "stale"},
    "lth": {},
    "lth-iterative": {},
    "imp": {"schedule": {"steps": "3"}},
}


def chosen(name, asked=0.8, **settings):
    """Return the request for one of CHOICES."""
    method = {"gmp-stale": "gmp"}.get(name, name)
    method = "disparse-dynamic" if name in ("release", "and", "global") else method
    return request(method, asked, method=CHOICES[name], **settings)


@pytest.mark.parametrize("name", CHOICES)
def test_sparsity_is_exact_in_masks_weights_and_rows(undisturbed, registry, name):
    asked = 0.45
    folder = undisturbed(chosen(name, asked))
    masks = load_masks(folder / MASKS)
    sizes = {weight: mask.numel() for weight, mask in masks.items()}
    total, rows = sum(sizes.values()), sparsity_rows(folder)
    assert sum(int(mask.sum()) for mask in masks.values()) == kept_count(total, asked)
    assert rows["whole"] == sparsity(masks)
    assert abs(rows["whole"] - asked) <= 0.5 / total
    parts = discover(untrained(registry, chosen(name, asked)), torch.zeros(1, 3, 64, 64)).by_name()
    assert rows == {"whole": rows["whole"], **{part: sparsity(masks, names) for part, names in parts.items()}}
    weighted = sum(rows[part] * sum(sizes[weight] for weight in names) for part, names in parts.items())
    assert weighted / total == pytest.approx(rows["whole"], abs=1e-12)
    weights, _ = load_tensors(folder / WEIGHTS)
    assert all(not weights[weight][~mask].any() for weight, mask in masks.items())
    assert all(weights[weight][mask].any() for weight, mask in masks.items())


class Interrupt:
    """Breaks a run off after the given step of a stage, or in the middle of the update before it."""

    def __init__(self, stage, step, update):
        self.stage, self.step, self.update, self.done = stage, step, update, False

    def _at(self, run, step):
        if not self.done and run.stage == self.stage and step == self.step:
            self.done = True
            raise KeyboardInterrupt

    @hookimpl
    def step_finished(self, run, step, losses):
        if not self.update:
            self._at(run, step)

    @hookimpl
    def masks_updated(self, run, step, before, after):
        if self.update:
            self._at(run, step)


BREAKS = {
    "rigl": [("training", 3, False), ("training", 10, True), ("training", 10, False), ("training", 12, False)],
    "set": [("training", 6, True), ("training", 6, False), ("training", 13, False)],
    "disparse-dynamic": [("training", 4, False), ("training", 10, True), ("training", 11, False)],
    "release": [("training", 4, False), ("training", 10, True), ("training", 11, False)],
    "gmp": [("training", 7, False), ("training", 10, True)],
    "gmp-stale": [("training", 7, False), ("training", 10, True)],
    "lth": [("dense training", 9, False), ("training", 9, False)],
    "lth-iterative": [("dense training", 15, False), ("round 2 of 3", 3, False), ("training", 1, False)],
    "imp": [("round 1 of 12", 1, False), ("round 11 of 12", 0, False), ("training", 5, False)],
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_run_broken_off_between_and_in_updates_ends_with_the_same_bits(tmp_path, undisturbed, registry, name):
    asked = chosen(name, 0.45)
    whole = undisturbed(asked)
    pieces = replace(asked, settings={**asked.settings, "engine": {"checkpoint_seconds": 0}})
    for stop in BREAKS[name]:
        with observed(registry, Interrupt(*stop)), pytest.raises(KeyboardInterrupt):
            run(tmp_path, registry, pieces)
    (folder,) = run(tmp_path, registry, pieces)
    for file in (MASKS, WEIGHTS):
        assert (whole / file).read_bytes() == (folder / file).read_bytes(), file
    assert list(read_history(whole / "history.jsonl")) == list(read_history(folder / "history.jsonl"))


def test_gradual_pruning_removes_more_and_more_of_every_layer_and_nothing_comes_back(tmp_path, watched, spy):
    (folder,) = run(tmp_path, watched, request("gmp", 0.9))
    assert [change.step for change in spy.changes] == UPDATES[1:]
    assert all(mask.all() for mask in load_masks(folder / START_MASKS).values()), "before training: nothing"
    sizes = {name: mask.numel() for name, mask in load_masks(folder / MASKS).items()}
    for change in spy.changes:
        before, after = change.masks
        goal = reference.cubic_sparsity(0.9, change.step, UPDATES[-1])
        assert sparsity(after) == pytest.approx(goal, abs=1 / sum(sizes.values()))
        for name, now in after.items():
            assert not (now & ~before[name]).any()
            assert abs(int(now.sum()) - (1 - goal) * sizes[name]) <= 1, "uniform over layers"
            magnitude = change.before[name][0].abs()
            gone = magnitude[before[name] & ~now]
            assert len(gone) == 0 or gone.max() <= magnitude[now].min()
    assert all(
        torch.equal(mask, spy.changes[-1].masks[1][name]) for name, mask in load_masks(folder / MASKS).items()
    )


def test_slow_gradual_pruning_never_gives_a_layer_a_weight_back(registry):
    model = untrained(registry, request("gmp"))
    case = SimpleNamespace(
        weights=prunable(model), voters=[SimpleNamespace(name="all", weights=tuple(prunable(model)))]
    )
    method, rising = registry.get("methods", "gmp"), 0
    total = sum(weight.numel() for weight in case.weights.values())
    shapes = {name: tuple(weight.shape) for name, weight in case.weights.items()}
    plan = method.schedule.plan(0.5, Recipe(steps=1000, update_every=5))
    masks = make_masks(method, case, 0.0)
    for update in plan:
        new = make_masks(method, case, update.sparsity, masks)
        kept = kept_count(total, update.sparsity)
        assert sum(int(mask.sum()) for mask in new.values()) == kept
        assert not any((mask & ~masks[name]).any() for name, mask in new.items())
        assert all(abs(int(mask.sum()) - kept * mask.numel() / total) < 2 for mask in new.values())
        # By the largest remainders a layer's count may rise though the sum falls (the Alabama paradox).
        rising += sum(group.kept > masks[group.names[0]].sum() for group in method.allocation.groups(shapes, kept))
        masks = new
    assert rising > 0


@pytest.mark.parametrize(
    ("name", "rest"), [("gmp", {}), ("lth-iterative", {}), ("imp", {"schedule": {"steps": "1"}})]
)
def test_what_is_removed_stays_removed_whatever_the_scores(tmp_path, watched, spy, name, rest):
    # By magnitude removed weights come last anyway; by lot they would come back.
    (folder,) = run(tmp_path, watched, request(name, 0.45, method={"score": "noise", **rest}))
    rounds = len(list(folder.glob("round-*")))
    masks = [load_masks(folder / f"round-{number}" / START_MASKS) for number in range(1, rounds + 1)]
    masks += [load_masks(folder / START_MASKS), *(change.masks[1] for change in spy.changes)]
    assert len(masks) == {"gmp": 4, "lth-iterative": 3, "imp": 12}[name]
    for before, after in pairwise(masks):
        assert not any((mask & ~before[weight]).any() for weight, mask in after.items())
    assert all(torch.equal(mask, masks[-1][weight]) for weight, mask in load_masks(folder / MASKS).items())


def test_stale_weights_of_gradual_pruning_may_come_back_and_final_ones_are_zero(tmp_path, watched, spy):
    (folder,) = run(tmp_path, watched, chosen("gmp-stale", 0.6, train={"lr": "0.05", "steps": "40"}))
    back = sum(
        int((now & ~change.masks[0][name]).sum())
        for change in spy.changes
        for name, now in change.masks[1].items()
    )
    assert back > 0
    for change in spy.changes:
        for name, old in change.before.items():
            assert all(map(torch.equal, old, change.after[name])), "an update hides weights, and changes none"
    assert (
        sum(
            int((change.before[name][0][~mask] != 0).sum())
            for change in spy.changes[1:]
            for name, mask in change.masks[0].items()
        )
        > 0
    )
    weights, _ = load_tensors(folder / WEIGHTS)
    assert all(not weights[name][~mask].any() for name, mask in load_masks(folder / MASKS).items())


def test_the_released_disparse_brings_weights_back_as_they_are_moments_included(tmp_path, watched, spy):
    run(tmp_path, watched, chosen("release"))
    assert [change.step for change in spy.changes] == UPDATES
    back = 0
    for change in spy.changes:
        assert all(
            all(map(torch.equal, old, change.after[name])) for name, old in change.before.items() if len(old) > 1
        )
        for name, now in change.masks[1].items():
            grown = now & ~change.masks[0][name]
            back += int((change.after[name][0][grown] != 0).sum())
    assert back > 0
    made = spy.trainings[0].made
    assert all(torch.equal(values[0], made[name]) for name, values in spy.changes[0].after.items()), (
        "all are there"
    )
    # Hidden weights lose about a learning rate a step, and gain nothing.
    first, second = (spy.changes[i].after for i in (0, 1))
    for name, mask in spy.changes[0].masks[1].items():
        big = ~mask & (first[name][0].abs() > 0.06)
        assert (second[name][0][big].abs() < first[name][0][big].abs()).all()
        assert (second[name][0][big] != 0).all()


@pytest.mark.parametrize("name", ["lth", "lth-iterative"])
def test_every_ticket_begins_with_the_initial_weights_under_its_mask_to_the_bit(tmp_path, watched, spy, name):
    asked = request(name, 0.45)
    (folder,) = run(tmp_path, watched, asked)
    initial = copies(untrained(watched, asked))
    dense, *tickets = spy.trainings
    folders = [*(folder / f"round-{n}" for n in range(1, len(tickets))), folder]
    levels = [1 - 0.8**number for number in range(1, len(tickets))] + [0.45]
    assert len(tickets) == (1 if name == "lth" else 3), "0.8 ** 3 < 0.55 < 0.8 ** 2"
    assert spy.stages[0] == "dense training"
    assert all(torch.equal(tensor, dense.made[key]) for key, tensor in initial.items())
    total = sum(weight.numel() for weight in prunable(untrained(watched, asked)).values())
    trained, earlier = dense.last, None
    for ticket, place, level in zip(tickets, folders, levels, strict=True):
        masks = load_masks(place / START_MASKS)
        assert sum(int(mask.sum()) for mask in masks.values()) == kept_count(total, level)
        for key, tensor in initial.items():
            assert torch.equal(ticket.made[key], tensor), "rewound, buffers of batch norm included"
            assert torch.equal(ticket.first[key], tensor * masks[key] if key in masks else tensor)
        kept = torch.cat([trained[key][mask].abs() for key, mask in masks.items()])
        gone = torch.cat([trained[key][~mask].abs() for key, mask in masks.items()])
        assert kept.min() >= gone.max(), "the largest after training, over all layers"
        if earlier is not None:
            assert not any((mask & ~earlier[key]).any() for key, mask in masks.items()), "nested"
        assert ticket.steps == STEPS
        trained, earlier = ticket.last, masks
    final = load_masks(folder / MASKS)
    assert all(torch.equal(mask, final[key]) for key, mask in earlier.items())


@pytest.mark.parametrize(("name", "step"), [("lth", 15), ("lth-iterative", 1)])
def test_late_rewinding_goes_on_from_the_dense_trainings_weights_at_that_step(tmp_path, watched, spy, name, step):
    seen = {}

    class Follow:
        @hookimpl
        def step_finished(self, run, step, losses):
            seen[run.stage, step] = copies(spy._model)

    with observed(watched, Follow()):
        run(tmp_path, watched, request("dense"))
    late = seen["dense training", step - 1]
    spy.trainings.clear()
    settings = {"method": {"start": {"rewind": str(step)}}}
    (folder,) = run(tmp_path, watched, request(name, 0.45, **settings))
    first, *tickets = spy.trainings
    assert first.steps == step, "the same steps once more"
    assert all(torch.equal(tensor, late[key]) for key, tensor in first.last.items())
    assert len(tickets) == (1 if name == "lth" else 3)
    for number, ticket in enumerate(tickets, 1):
        place = folder if number == len(tickets) else folder / f"round-{number}"
        masks = load_masks(place / START_MASKS)
        for key, tensor in late.items():
            assert torch.equal(ticket.made[key], tensor)
            assert torch.equal(ticket.first[key], tensor * masks[key] if key in masks else tensor)
        assert ticket.steps == STEPS - step
    assert [entry["step"] for entry in read_history(folder / "history.jsonl")] == list(range(step, STEPS))


@pytest.mark.parametrize("step", [16, 17])
def test_rewinding_to_a_step_after_training_is_refused(registry, step):
    settings = {"method": {"start": {"rewind": str(step)}}}
    with pytest.raises(UsageError, match=f"rewinds to step {step}, but training has 16 steps"):
        prepare_all([request("lth", **settings)], registry, **SILENT)


@pytest.mark.parametrize(
    "schedule", [{"name": "cubic"}, {"name": "every", "interval": "8"}, {"name": "once", "step": "11"}]
)
def test_rewinding_past_an_update_is_refused_as_it_would_never_be_made(registry, schedule):
    settings = {"start": {"rewind": "12"}, "schedule": schedule, "grow": "noise"}
    with pytest.raises(
        UsageError, match=r"rewinds to step 12, but schedule .* updates masks at step \d+ of the same"
    ):
        prepare_all([request("lth", method=settings)], registry, **SILENT)


def test_rewinding_past_the_end_of_a_round_is_refused(registry):
    settings = {"start": {"rewind": "12"}, "schedule": {"steps": "5"}}
    with pytest.raises(UsageError, match="rewinds to step 12, but training has 5 steps"):
        prepare_all([request("lth-iterative", method=settings)], registry, **SILENT)


def test_the_training_to_rewind_to_is_part_of_what_a_run_has_cost(tmp_path, registry):
    (folder,) = run(tmp_path, registry, request("lth", method={"start": {"rewind": "10"}}))
    cost = {row["metric"]: row["value"] for row in read_rows(folder) if row["metric"] in ("steps", "seconds")}
    places = [folder, *(tmp_path / "stages").iterdir()]
    assert len(places) == 3
    assert cost["steps"] == STEPS + 10 + (STEPS - 10)
    assert cost["seconds"] == pytest.approx(sum(kept_cost(place).seconds for place in places))


@dataclass(frozen=True)
class Planned:
    """A schedule of a plugin, whose plan says what it likes."""

    updates: tuple
    name: str = "planned"

    def plan(self, sparsity, recipe):
        return self.updates


@pytest.mark.parametrize(
    ("updates", "problem"),
    [
        ((Update(0, 0.8, 0.3),), "regrows weights before it has pruned any"),
        ((Update(5, 0.8, 0.3),), "regrows weights before it has pruned any"),
        ((Update(0, 0.5), Update(16, 0.8)), "updates outside of training"),
        ((Update(-1, 0.8),), "updates outside of training"),
        ((Update(0, 0.5), Update(0, 0.8, restart=True)), "in no order"),
    ],
)
def test_a_plan_that_training_would_cut_short_is_refused(updates, problem):
    registry = load_registry([PLUGIN])
    method = Method(name="planned", score=noise(), grow=noise(), schedule=Planned(updates))
    registry.add("methods", method, "test", "test", None)
    with pytest.raises(UsageError, match=problem):
        prepare_all([request("planned")], registry, **SILENT)


@pytest.mark.parametrize("name", ["gmp", "toy-late"])
def test_weights_that_are_selected_have_the_sparsity_asked_for(tmp_path, registry, name):
    # At this sparsity the loss is lowest early on, where the masks are not the last ones yet.
    asked = replace(
        request(name, 0.99, train={"steps": "30", "lr": "0.03", "update_stop": "0.9"}), protocol="disparse"
    )
    (folder,) = run(tmp_path, registry, asked)
    masks = load_masks(folder / MASKS)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == kept_count(total, 0.99)
    assert sparsity_rows(folder)["whole"] == sparsity(masks)


def test_pruning_in_eleven_rounds_goes_on_from_the_weights_it_has(tmp_path, watched, spy):
    assert watched.get("methods", "imp").schedule.plan(0.9, Recipe(steps=1000))[-1].step == 1100
    (folder,) = run(tmp_path, watched, chosen("imp", 0.9))
    dense, *rounds, finetuning = spy.trainings
    assert (dense.steps, finetuning.steps) == (STEPS, 8)
    assert [training.steps for training in rounds] == [3] * 11
    assert spy.stages[:3] == ["dense training", "round 1 of 12", "round 2 of 12"]
    places = [*(folder / f"round-{number}" for number in range(1, 12)), folder]
    masks = [load_masks(place / START_MASKS) for place in places]
    total = sum(mask.numel() for mask in masks[0].values())
    kept = [sum(int(mask.sum()) for mask in own.values()) for own in masks]
    assert kept == [kept_count(total, 1 - 0.1 ** (number / 11)) for number in range(1, 12)] + [
        kept_count(total, 0.9)
    ]
    for before, after in pairwise(masks):
        assert not any((mask & ~before[name]).any() for name, mask in after.items())
    assert all(torch.equal(mask, masks[-1][name]) for name, mask in masks[-2].items())
    for own, before, after in zip(masks, spy.trainings, spy.trainings[1:], strict=False):
        for name, tensor in before.last.items():
            assert torch.equal(after.made[name], tensor), "no rewinding"
            assert torch.equal(after.first[name], tensor * own[name] if name in own else tensor)


@pytest.mark.parametrize("name", ["random-erk", "lth"])
def test_shuffled_masks_keep_each_layers_density_and_change_places(tmp_path, watched, spy, name):
    (folder,) = run(tmp_path, watched, request(name, 0.7, method={"control": "shuffled"}))
    made, final = load_masks(folder / START_MASKS), load_masks(folder / MASKS)
    for weight, mask in made.items():
        assert final[weight].sum() == mask.sum()
    assert sum(int((mask != final[weight]).sum()) for weight, mask in made.items()) > 100
    for weight, mask in final.items():
        assert not spy.trainings[-1].first[weight][~mask].any()
        assert torch.equal(spy.trainings[-1].first[weight][mask], spy.trainings[-1].made[weight][mask])
    assert read_rows(folder)[0]["settings"] == "control=shuffled"
    assert sparsity_rows(folder)["whole"] == sparsity(made)


@pytest.mark.parametrize("name", ["snip", "lth"])
def test_redrawn_weights_train_under_the_masks_that_others_have_earned(tmp_path, watched, spy, name):
    plain, redrawn = (
        run(tmp_path, watched, request(name, 0.7, method={"control": control}))[0]
        for control in ("none", "redrawn")
    )
    assert (plain / MASKS).read_bytes() == (redrawn / MASKS).read_bytes()
    masks = load_masks(plain / MASKS)
    other = copies(untrained(watched, request(name), "redrawn"))
    own = copies(untrained(watched, request(name)))
    plain_start, redrawn_start = (spy.trainings[i].first for i in (-2, -1))
    for key, tensor in own.items():
        assert torch.equal(plain_start[key], tensor * masks[key] if key in masks else tensor)
        assert torch.equal(redrawn_start[key], other[key] * masks[key] if key in masks else other[key])
        if key in masks:
            assert not torch.equal(tensor, other[key])


@pytest.mark.parametrize("name", ["rigl", "gmp", "toy-late"])
@pytest.mark.parametrize("control", ["shuffled", "redrawn"])
def test_controls_are_refused_where_masks_still_change_in_training(registry, name, control):
    with pytest.raises(UsageError, match=f"method.control={control} needs masks that are made before training"):
        prepare_all([request(name, method={"control": control})], registry, **SILENT)


def test_redrawn_weights_are_refused_where_training_goes_on_from_trained_ones(registry):
    with pytest.raises(UsageError, match=r"control=redrawn .* 'magnitude' goes on from trained ones"):
        prepare_all([request("magnitude", method={"control": "redrawn"})], registry, **SILENT)


class Opposite:
    """Samples whose normals point the other way."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        sample = self.samples[index]
        return Sample.of(sample.image, {**sample.targets, "normals": -sample.targets["normals"]}, sample.masks)


def with_opposite_normals(registry):
    toy = registry.get("datasets", "toy")

    def open_opposite(asked):
        splits = toy.open(asked)
        parts = {name: Opposite(getattr(splits, name)) for name in ("train", "validation", "test")}
        return Splits(**{**vars(splits), **parts, "fingerprint": "opposite"})

    registry.add("datasets", replace(toy, name="toy-opposite", open=open_opposite), "test", "test", None)


def test_networks_of_single_tasks_share_nothing(tmp_path):
    registry = load_registry([PLUGIN])
    with_opposite_normals(registry)
    unchanged = {}
    for method in ("dense-single-task", "dense"):
        requests = [request(method), request(method, dataset="toy-opposite")]
        run(tmp_path, registry, *requests)
        stages = [experiment.config.dense_key for experiment in prepare_all(requests, registry, **SILENT)]
        one, two = (load_tensors(tmp_path / "stages" / stage / WEIGHTS)[0] for stage in stages)
        unchanged[method] = {name for name, tensor in one.items() if torch.equal(tensor, two[name])}
    names = weights_of(untrained(registry, request("dense-single-task")))
    segmentation = {name for name in names if name.startswith("networks.segmentation.")}
    normals = {name for name in names if name.startswith("networks.normals.") and name.endswith("weight")}
    assert segmentation <= unchanged["dense-single-task"], "what the other task learns changes no bit"
    assert normals
    assert normals.isdisjoint(unchanged["dense-single-task"])
    assert not any(name.endswith("weight") for name in unchanged["dense"]), "in the multitask network it does"


def test_each_network_of_a_single_task_is_the_multitask_one_with_one_head(tmp_path, registry):
    separate = weights_of(untrained(registry, request("dense-single-task")))
    whole = weights_of(untrained(registry, request("dense")))
    for task in ("segmentation", "normals"):
        own = {
            name.removeprefix(f"networks.{task}."): tensor.shape
            for name, tensor in separate.items()
            if name.startswith(f"networks.{task}.")
        }
        assert own == {
            name: tensor.shape for name, tensor in whole.items() if name.startswith(("trunk.", f"heads.{task}."))
        }
    trunks = [separate[f"networks.{task}.trunk.0.weight"] for task in ("segmentation", "normals")]
    assert not torch.equal(*trunks), "drawn one after the other"
    (folder,) = run(tmp_path, registry, request("dense-single-task"))
    assert sparsity_rows(folder) == {"whole": 0.0, "segmentation": 0.0, "normals": 0.0}


def test_single_tasks_are_pruned_to_the_sparsity_asked_for(tmp_path, registry):
    (folder,) = run(tmp_path, registry, request("magnitude", 0.8, method={"network": "single-task"}))
    masks = load_masks(folder / MASKS)
    total = sum(mask.numel() for mask in masks.values())
    assert total == sum(w.numel() for w in prunable(untrained(registry, request("dense-single-task"))).values())
    assert sum(int(mask.sum()) for mask in masks.values()) == kept_count(total, 0.8)


@pytest.mark.parametrize("asked", [0.0, 0.8])
def test_a_small_dense_network_has_at_most_the_weights_that_pruning_would_leave(tmp_path, registry, asked):
    (folder,) = run(tmp_path, registry, request("dense-small", asked))
    full = prunable(untrained(registry, request("dense")))
    small = prunable(untrained(registry, request("dense-small", asked)))
    total = sum(weight.numel() for weight in full.values())
    count = sum(weight.numel() for weight in small.values())
    assert count <= (1 - asked) * total
    rows = sparsity_rows(folder)
    assert rows["whole"] == pytest.approx(1 - count / total, abs=1e-12)
    assert rows["whole"] >= asked
    for part, head in (("segmentation", 5), ("normals", 3)):
        assert rows[part] == pytest.approx(1 - head * small["trunk.3.weight"].shape[0] / (head * 16), abs=1e-12)
    width = small["trunk.3.weight"].shape[0]
    wider = 3 * 9 * (width + 1) + 9 * (width + 1) ** 2 + 8 * (width + 1)
    assert wider > (1 - asked) * total, "one more channel would be too many"
    assert load_masks(folder / MASKS) is None
    stored, _ = load_tensors(next((tmp_path / "stages").iterdir()) / WEIGHTS)
    assert {name: stored[name].shape for name in small} == {name: weight.shape for name, weight in small.items()}


def test_a_network_that_cannot_be_made_so_small_is_refused_before_anything_runs(registry):
    with pytest.raises(UsageError, match=r"cannot be made so small that a sparsity of 0.99 is reached"):
        prepare_all([request("dense-small", 0.99)], registry, **SILENT)
