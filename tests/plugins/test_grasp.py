"""GraSP: Hessian-gradient products against closed formulas and differences, and what a score means."""

import math

import numpy as np
import pytest
import torch
from references import flow as reference
from torch import nn
from torch.nn import functional as F

from mtlprune_bench import JOINT, PER_TASK, STANDARD, Labels, Task, UsageError
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.plugins.methods.grasp import GraSP
from mtlprune_bench.pruning.components import discover, prunable
from mtlprune_bench.pruning.masks import kept_count
from mtlprune_bench.pruning.prune import make_masks, voters_of
from mtlprune_bench.pruning.scorers import Scoring
from mtlprune_bench.tasks import Batch, Objective

CLASSES = 4
SIZE = 5


def squared(prediction, target, mask, labels):
    return ((prediction - target) ** 2).mean()


def half_squared_sum(prediction, target, mask, labels):
    return 0.5 * ((prediction - target) ** 2).sum()


def entropy(prediction, target, mask, labels):
    return F.cross_entropy(prediction, target)


def linear(prediction, target, mask, labels):
    return (prediction * target).mean()


TASKS = {
    "classes": (Task(name="classes", description="toy", loss=entropy), Labels("classes", classes=CLASSES)),
    "numbers": (Task(name="numbers", description="toy", loss=squared, channels=2), Labels("numbers")),
}


def objective(weights, **losses):
    """Return an objective of the tasks in `weights`; `losses` replace the loss of some."""
    tasks = {name: TASKS[name][0] for name in weights}
    for name, loss in losses.items():
        tasks[name] = Task(name=name, description="toy", loss=loss, channels=tasks[name].channels)
    return Objective(tasks, {name: TASKS[name][1] for name in weights}, weights, STANDARD)


class Net(nn.Module):
    """A smooth trunk, with batch norm if wanted, and a head with dropout for each task."""

    def __init__(self, tasks=("classes", "numbers"), norm=False, dropout=0.0, eps=1e-5):
        super().__init__()
        inner = [nn.BatchNorm2d(3, eps=eps)] if norm else []
        self.trunk = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), *inner, nn.Tanh(), nn.Conv2d(3, 3, 1), nn.Tanh())
        outputs = {"classes": CLASSES, "numbers": 2}
        self.heads = nn.ModuleDict(
            {task: nn.Sequential(nn.Dropout(dropout), nn.Conv2d(3, outputs[task], 1)) for task in tasks}
        )

    def forward(self, images):
        features = self.trunk(images)
        return {task: head(features) for task, head in self.heads.items()}


class Layer(nn.Module):
    """One 1 x 1 convolution without bias."""

    def __init__(self, task, outputs):
        super().__init__()
        self.task = task
        self.layer = nn.Conv2d(3, outputs, 1, bias=False)

    def forward(self, images):
        return {self.task: self.layer(images)}


class WithLinear(nn.Module):
    """A convolution, then a linear layer on every pixel."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 40, 1)
        self.last = nn.Linear(40, 2)

    def forward(self, images):
        return {"numbers": self.last(torch.tanh(self.first(images)).movedim(1, -1)).movedim(-1, 1)}


def batches(count=2, images=4, seed=0, channels=2):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.ones(images, SIZE, SIZE, dtype=torch.bool)
    return [
        Batch(
            torch.randn(images, 3, SIZE, SIZE, generator=generator, dtype=torch.float64),
            {
                "classes": torch.randint(CLASSES, (images, SIZE, SIZE), generator=generator),
                "numbers": torch.randn(images, channels, SIZE, SIZE, generator=generator, dtype=torch.float64),
            },
            {"classes": masks, "numbers": masks},
        )
        for _ in range(count)
    ]


def scoring(model, goal, data, scope=JOINT, seed=0):
    components = discover(model, data[0].images)
    return Scoring(
        model=model,
        weights={name: weight for name, weight in prunable(model).items() if name in components.users},
        voters=voters_of(scope, goal.weights, components),
        losses=lambda batch, temperature=1.0: goal.losses(model(batch.images), batch, temperature),
        batches=lambda count: data[:count],
        seed=seed,
    )


def network(seed=0, **settings):
    torch.manual_seed(seed)
    return Net(**settings).double()


def gradient(given, voter, data, temperature):
    """Return the gradient of a voter's loss, summed over the halves of `data`, as one tensor for each weight."""
    given.model.train()
    total = 0
    for batch in data:
        for half in batch.parts(2):
            total = total + voter.loss(given.losses(half, temperature))
    return dict(
        zip(voter.weights, torch.autograd.grad(total, [given.weights[n] for n in voter.weights]), strict=True)
    )


WEIGHTS = {"classes": 1.0, "numbers": 20.0}


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize("scope", [JOINT, PER_TASK])
@pytest.mark.parametrize("temperature", [1.0, 3.0, 200.0])
def test_the_product_is_the_difference_of_gradients_along_the_gradient(norm, scope, temperature):
    model, data = network(norm=norm), batches()
    given = scoring(model, objective(WEIGHTS), data, scope)
    scores = GraSP(batches=2, temperature=temperature)(given)
    for voter in given.voters:
        direction = gradient(given, voter, data, temperature)
        # A step of this length along g balances the error of the difference and of rounding.
        length = 1e-5 / math.sqrt(sum(float((g**2).sum()) for g in direction.values()))

        def moved(step, voter=voter, direction=direction):
            with torch.no_grad():
                for name, g in direction.items():
                    given.weights[name].add_(step * g)
            found = gradient(given, voter, data, temperature)
            with torch.no_grad():
                for name, g in direction.items():
                    given.weights[name].sub_(step * g)
            return torch.cat([found[name].flatten() for name in voter.weights])

        expected = reference.slope(moved, length)
        weights = torch.cat([given.weights[name].detach().flatten() for name in voter.weights])
        found = torch.cat([scores[voter.name][name].flatten() for name in voter.weights])
        expected = weights * expected
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
def test_a_score_is_half_of_what_the_squared_gradient_norm_loses_as_the_weight_fades(norm):
    model, data = network(norm=norm), batches(count=1)
    given = scoring(model, objective(WEIGHTS), data)
    (voter,) = given.voters
    scores = GraSP(temperature=2.0)(given)["all tasks"]
    largest = max(float(score.abs().max()) for score in scores.values())
    for name, score in scores.items():
        flat = given.weights[name].detach().view(-1)
        for index, weight in enumerate(flat.tolist()):

            def norm_where_it_fades_by(step, flat=flat, index=index, weight=weight):
                flat[index] = weight * (1 - step)
                found = sum(float((g**2).sum()) for g in gradient(given, voter, data, 2.0).values())
                flat[index] = weight
                return found

            lost = -reference.slope(norm_where_it_fades_by, 1e-4)
            assert float(score.view(-1)[index]) == pytest.approx(lost / 2, rel=1e-5, abs=1e-7 * largest)


def test_least_squares_has_the_scores_of_its_closed_formula():
    torch.manual_seed(1)
    model = Layer("numbers", 1).double()
    data = batches(count=1, images=6, channels=1)
    goal = objective({"numbers": 1.0}, numbers=half_squared_sum)
    score = GraSP()(scoring(model, goal, data))["all tasks"]["layer.weight"]
    inputs = data[0].images.movedim(1, -1).reshape(-1, 3).numpy()
    targets = data[0].targets["numbers"].reshape(-1).numpy()
    expected = reference.least_squares_scores(inputs, targets, model.layer.weight.detach().numpy().ravel())
    np.testing.assert_allclose(score.numpy().ravel(), expected, rtol=1e-12)


def test_least_squares_by_hand():
    model = Layer("numbers", 1).double()
    with torch.no_grad():
        model.layer.weight.copy_(torch.tensor([2.0, -1.0, 0.0])[None, :, None, None])
    images = torch.zeros(2, 3, 1, 1, dtype=torch.float64)
    images[0, :, 0, 0] = torch.tensor([1.0, 1.0, 0.0])
    images[1, :, 0, 0] = torch.tensor([0.0, 2.0, 3.0])
    batch = Batch(images, {"numbers": torch.zeros(2, 1, 1, 1)}, {"numbers": torch.ones(2, 1, 1, dtype=torch.bool)})
    goal = objective({"numbers": 1.0}, numbers=half_squared_sum)
    # X = [[1, 1, 0], [0, 2, 3]], w = [2, -1, 0]: Xw = [1, -2], g = X'Xw = [1, -3, -6], Xg = [-2, -24],
    # Hg = X'Xg = [-2, -50, -72], and the scores are w * Hg.
    score = GraSP()(scoring(model, goal, [batch]))["all tasks"]["layer.weight"]
    assert score.flatten().tolist() == [-4.0, 50.0, 0.0]


@pytest.mark.parametrize("temperature", [1.0, 5.0, 200.0])
def test_softmax_regression_has_the_scores_of_its_closed_formula(temperature):
    torch.manual_seed(1)
    model = Layer("classes", CLASSES).double()
    data = batches(count=2)
    given = scoring(model, objective({"classes": 1.0}), data)
    score = GraSP(batches=2, temperature=temperature)(given)["all tasks"]["layer.weight"]
    pieces = [
        (half.images.movedim(1, -1).reshape(-1, 3).numpy(), half.targets["classes"].reshape(-1).numpy())
        for batch in data
        for half in batch.parts(2)
    ]
    weight = model.layer.weight.detach()[:, :, 0, 0].T.numpy()
    expected = reference.softmax_scores(pieces, weight, temperature)
    np.testing.assert_allclose(score[:, :, 0, 0].T.numpy(), expected, rtol=1e-10)


def test_temperature_divides_the_logits_of_tasks_with_classes_only():
    model, data = network(), batches()
    given = scoring(model, objective(WEIGHTS), data, PER_TASK)
    cold, hot = GraSP(temperature=1.0)(given), GraSP(temperature=200.0)(given)
    assert all(torch.equal(score, hot["numbers"][name]) for name, score in cold["numbers"].items())
    # One factor of the temperature from g, one from the gradient of g, one from where the logits are flatter.
    for name, score in cold["classes"].items():
        assert float(hot["classes"][name].abs().sum()) < 1e-3 * float(score.abs().sum())
        assert float(hot["classes"][name].abs().sum()) > 0


def test_weights_under_batch_norm_lose_as_much_as_their_own_gradient_has():
    # The loss does not change with the scale of weights w under batch norm, so that H w is -g for w, 0 for the
    # rest, and the sum of w * Hg is -|g|^2. It holds only if g and H see the same batch statistics.
    model, data = network(norm=True, eps=1e-15), batches()
    given = scoring(model, objective(WEIGHTS), data)
    score = GraSP(batches=2, temperature=3.0)(given)["all tasks"]["trunk.0.weight"]
    g = gradient(given, given.voters[0], data, 3.0)["trunk.0.weight"]
    assert float(score.sum()) == pytest.approx(-float((g**2).sum()), rel=1e-9)


def test_gradient_and_hessian_see_the_same_dropout_and_halves_their_own():
    model, data = network(dropout=0.5), batches(count=1, images=2)
    data[0].images[1] = data[0].images[0]
    for target in data[0].targets.values():
        target[1] = target[0]
    given = scoring(model, objective(WEIGHTS), data)
    seen = []

    def losses(batch, temperature):
        found = given.losses(batch, temperature)
        seen.append(found["numbers"].item())
        return found

    spied = Scoring(model, given.weights, given.voters, losses, given.batches, seed=0)
    GraSP()(spied)
    first, second, again, last = seen
    assert (first, second) == (again, last)
    assert first != second, "the halves are equal, so that only their dropout can differ"
    spied = Scoring(model, given.weights, given.voters, losses, given.batches, seed=1)
    GraSP()(spied)
    assert seen[4] != first, "another seed draws another dropout"


def test_a_loss_four_times_as_large_has_sixteen_times_the_scores():
    model, data = network(), batches()
    one = GraSP()(scoring(model, objective({"numbers": 1.0, "classes": 2.0}), data))["all tasks"]
    four = GraSP()(scoring(model, objective({"numbers": 4.0, "classes": 8.0}), data))["all tasks"]
    assert all(torch.equal(16 * score, four[name]) for name, score in one.items())


def test_the_order_of_images_within_a_half_is_irrelevant_and_the_cut_is_not():
    model, data = network(norm=True), batches(count=1, images=6)
    plain = GraSP()(scoring(model, objective(WEIGHTS), data))["all tasks"]

    def ordered(order):
        (batch,) = data
        shuffled = Batch(batch.images[order], {t: v[order] for t, v in batch.targets.items()}, batch.masks)
        return GraSP()(scoring(model, objective(WEIGHTS), [shuffled]))["all tasks"]

    within, swapped, across = ordered([2, 0, 1, 4, 5, 3]), ordered([3, 4, 5, 0, 1, 2]), ordered([0, 3, 1, 4, 2, 5])
    for name, score in plain.items():
        torch.testing.assert_close(within[name], score, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(swapped[name], score, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(across["trunk.0.weight"], plain["trunk.0.weight"], rtol=1e-3)


def test_each_task_scores_what_it_uses_as_if_it_were_alone():
    data = batches()
    both = network()
    given = scoring(both, objective(WEIGHTS), data, PER_TASK)
    scores = GraSP()(given)
    assert set(scores) == {"classes", "numbers"}
    for task in scores:
        alone = Net(tasks=(task,)).double()
        alone.load_state_dict(
            {name: value for name, value in both.state_dict().items() if name in alone.state_dict()}
        )
        single = GraSP()(scoring(alone, objective({task: 1.0}), data))["all tasks"]
        assert set(scores[task]) == set(single) == {"trunk.0.weight", "trunk.2.weight", f"heads.{task}.1.weight"}
        assert all(torch.equal(score, single[name]) for name, score in scores[task].items())


def test_a_weight_of_zero_scores_zero_and_one_that_no_gradient_depends_on_too():
    model, data = network(), batches()
    with torch.no_grad():
        model.trunk[0].weight[0] = 0
    scores = GraSP()(scoring(model, objective(WEIGHTS), data))["all tasks"]
    assert (scores["trunk.0.weight"][0] == 0).all()
    assert (scores["trunk.0.weight"][1] != 0).any()

    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.curved, self.straight = nn.Conv2d(3, CLASSES, 1).double(), nn.Conv2d(3, 2, 1).double()

        def forward(self, images):
            return {"classes": self.curved(images), "numbers": self.straight(images)}

    scores = GraSP()(scoring(Apart(), objective(WEIGHTS, numbers=linear), data))["all tasks"]
    assert (scores["straight.weight"] == 0).all()
    assert (scores["curved.weight"] != 0).all()


@pytest.mark.parametrize("scorer", [GraSP(), GraSP(batches=2, linear="xavier")], ids=str)
@pytest.mark.parametrize("build", [lambda: Net(norm=True, dropout=0.3), WithLinear], ids=["net", "linear"])
@pytest.mark.parametrize("scope", [JOINT, PER_TASK])
def test_scoring_leaves_no_trace_repeats_and_is_finite(scorer, build, scope):
    torch.manual_seed(0)
    model, data = build().double().train(), batches()
    next(model.children()).eval()
    marked = next(model.parameters())
    marked.grad = torch.ones_like(marked)
    goal = objective({"numbers": 1.0} if isinstance(model, WithLinear) else WEIGHTS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    first, second = (scorer(scoring(model, goal, data, scope)) for _ in range(2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert (marked.grad == 1).all()
    assert all(p.requires_grad and (p.grad is None or p is marked) for p in model.parameters())
    for voter, own in first.items():
        for name, score in own.items():
            assert torch.equal(score, second[voter][name])
            assert torch.isfinite(score).all()
            assert not score.requires_grad
            assert score.shape == dict(model.named_parameters())[name].shape


def test_linear_layers_are_drawn_anew_on_request_only():
    torch.manual_seed(0)
    model, data = WithLinear().double(), batches()
    given = scoring(model, objective({"numbers": 1.0}), data)
    seen = []

    def losses(batch, temperature):
        seen.append(model.last.weight.detach().clone())
        return given.losses(batch, temperature)

    spied = Scoring(model, given.weights, given.voters, losses, given.batches, seed=0)
    own, drawn = GraSP()(spied)["all tasks"], GraSP(linear="xavier")(spied)["all tasks"]
    assert all(torch.equal(weight, model.last.weight) for weight in seen[:4])
    assert all(torch.equal(weight, seen[4]) for weight in seen[4:])
    assert float(seen[4].std()) == pytest.approx(math.sqrt(2 / (40 + 2)), rel=0.2)
    with torch.no_grad():
        model.last.weight.mul_(3)
    again = GraSP(linear="xavier")(spied)["all tasks"]
    assert all(torch.equal(score, again[name]) for name, score in drawn.items())
    assert not torch.equal(own["first.weight"], GraSP()(spied)["all tasks"]["first.weight"])


@pytest.mark.parametrize("scope", [JOINT, PER_TASK])
@pytest.mark.parametrize("count", [1, 2])
def test_passes_are_those_that_are_made(scope, count, monkeypatch):
    model, data = network(), batches()
    given = scoring(model, objective(WEIGHTS), data, scope)
    made = {"forward": 0, "backward": 0}
    model.register_forward_hook(lambda *_: made.update(forward=made["forward"] + 1))
    plain = torch.autograd.grad

    def counted(*arguments, **settings):
        made["backward"] += 1
        return plain(*arguments, **settings)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    GraSP(batches=count)(given)
    assert GraSP(batches=count).passes(len(given.voters)) == (made["forward"], made["backward"])


def test_the_method_is_registered_and_reaches_its_sparsity():
    registry = load_registry()
    method = registry.get("methods", "grasp")
    assert registry.get("scorers", "grasp") == GraSP()
    assert (method.score, method.scope, method.rounds) == (GraSP(batches=1, temperature=200.0), JOINT, 1)
    assert (method.start.score_on, method.start.train_from) == ("init", "init")
    model, data = network(norm=True), batches()
    given = scoring(model, objective(WEIGHTS), data)
    masks = make_masks(method, given, 0.7)
    count = sum(weight.numel() for weight in given.weights.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == kept_count(count, 0.7)
    scores = GraSP()(given)["all tasks"]
    kept = torch.cat([score[masks[name]] for name, score in scores.items()])
    gone = torch.cat([score[~masks[name]] for name, score in scores.items()])
    assert kept.min() >= gone.max()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batches": 0}, "batches of scorer 'grasp' is 0; it must be 1 or more"),
        ({"temperature": 0.0}, r"temperature of scorer 'grasp' is 0.0; it must be above 0"),
        ({"temperature": -200.0}, "must be above 0"),
        ({"temperature": math.nan}, "must be above 0"),
        ({"temperature": math.inf}, "must be above 0"),
    ],
    ids=str,
)
def test_settings_without_meaning_are_refused(settings, said):
    with pytest.raises(UsageError, match=said):
        GraSP(**settings)
