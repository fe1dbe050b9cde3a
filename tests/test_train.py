"""Training: removed weights stay exactly zero, and masks act as if every weight were multiplied by its own."""

import json
import math

import pytest
import torch
import toys
from torch.func import functional_call
from toys import Toy, batches, objective

from mtlprune_bench import Recipe
from mtlprune_bench.errors import DivergedError, StoreError
from mtlprune_bench.pruning.schedules import Update
from mtlprune_bench.seeds import derive
from mtlprune_bench.tasks import Batch
from mtlprune_bench.training.checkpoint import load_tensors
from mtlprune_bench.training.state import (
    BEST,
    CHECKPOINT,
    GradientMask,
    apply_masks,
    load_weights,
    weights_of,
)
from mtlprune_bench.training.train import HISTORY, Watch, train

LOSSES = {"a": 1.0, "b": 2.0}
RECIPE = Recipe(steps=12, batch=2, crop=6, lr=1e-2, weight_decay=0.1, select_every=4)


def network(seed=0):
    torch.manual_seed(seed)
    return Toy(sorted(LOSSES))


def random_masks(model, density=0.4):
    """Return masks of the convolutions' weights; a generator of their own, so that they are the same each time."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(weight.shape, generator=generator) < density
        for name, weight in model.named_parameters()
        if weight.dim() == 4
    }


def training(model, folder, **changes):
    """Return a training of `model`, dense throughout unless told otherwise."""
    return toys.training(model, folder, LOSSES, **{"recipe": RECIPE, **changes})


def test_a_gradient_mask_multiplies_gradients_and_passes_over_weights_without_one():
    model = network()
    masks = random_masks(model)
    names = list(masks)
    parameters = dict(model.named_parameters())
    for name in names[1:]:
        parameters[name].grad = torch.randn(parameters[name].shape)
    expected = {name: parameters[name].grad * masks[name] for name in names[1:]}
    GradientMask(model, masks)()
    assert parameters[names[0]].grad is None
    assert all(torch.equal(parameters[name].grad, expected[name]) for name in names[1:])
    GradientMask(model, {})()


def test_applied_masks_leave_plain_zeros_and_touch_nothing_else():
    model = network()
    with torch.no_grad():
        model.trunk[0].weight[0, 0, 0] = torch.tensor([-1.0, float("inf"), float("nan")])
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    mask = torch.ones(4, 3, 3, 3, dtype=torch.bool)
    mask[0, 0, 0] = False
    apply_masks(model, {"trunk.0.weight": mask})
    removed = model.trunk[0].weight[0, 0, 0]
    assert removed.tolist() == [0, 0, 0]
    assert not torch.signbit(removed).any()
    before["trunk.0.weight"][0, 0, 0] = 0
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def moments(folder, name):
    """Return both Adam moments of a weight, and the weight, from the folder's checkpoint."""
    tensors, _ = load_tensors(folder / CHECKPOINT)
    return [tensors[f"adam.{name}.{key}"] for key in ("exp_avg", "exp_avg_sq")], tensors[f"model.{name}"]


def test_removed_weights_and_their_moments_stay_exactly_zero(tmp_path):
    model = network()
    masks = random_masks(model)
    seen = []

    def look(step, losses):
        weights = dict(model.named_parameters())
        seen.append(all((weights[name][~mask] == 0).all() for name, mask in masks.items()))

    watch = Watch(look, lambda step, before, after: None)
    assert train(training(model, tmp_path, watch=watch, checkpoint_seconds=0), masks).masks == masks
    assert seen == [True] * 12
    for name, mask in masks.items():
        both, weight = moments(tmp_path, name)
        for moment in both:
            assert (moment[~mask] == 0).all()
            assert (moment[mask] != 0).all()
        assert (weight[mask] != 0).all()


def test_masks_made_on_the_way_clear_weights_and_moments_from_then_on(tmp_path):
    model = network()
    masks = random_masks(model)
    told = []
    end = train(
        training(
            model,
            tmp_path,
            plan=(Update(6, 0.6),),
            update=lambda update, current, batch: (masks, {}),
            watch=Watch(lambda step, losses: None, lambda *facts: told.append(facts)),
            checkpoint_seconds=0,
        ),
        {},
    )
    assert end.masks == masks
    assert told == [(6, {}, masks)]
    for name, mask in masks.items():
        both, weight = moments(tmp_path, name)
        assert all((moment[~mask] == 0).all() for moment in both)
        assert (weight[~mask] == 0).all()


def test_an_update_gets_the_step_the_sparsity_and_the_masks_so_far(tmp_path):
    model = network()
    first, second = random_masks(model, 0.8), random_masks(model, 0.3)
    asked = []

    def update(update, current, batch):
        asked.append((update.step, update.sparsity, current))
        return (first if update.step == 3 else second), {}

    train(training(model, tmp_path, plan=(Update(3, 0.2), Update(9, 0.7)), update=update), {})
    assert asked == [(3, 0.2, {}), (9, 0.7, first)]


def test_masked_training_is_training_of_weights_times_masks(tmp_path):
    recipe = Recipe(steps=6, batch=2, crop=6, lr=1e-2, weight_decay=0.0, lr_decay=0.5, lr_decay_every=2)
    # In double precision: the bias before batch norm has a gradient of rounding errors, which Adam blows up.
    data = [
        Batch(batch.images.double(), {task: t.double() for task, t in batch.targets.items()}, batch.masks)
        for batch in batches(LOSSES)
    ]
    model, masks = network().double(), random_masks(network())
    train(training(model, tmp_path, recipe=recipe, batches=lambda step: iter(data * 2)), masks)

    free = network().double()
    parameters = dict(free.named_parameters())
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-2, weight_decay=0.0)
    goal = objective(LOSSES)
    for step, lr in enumerate([1e-2, 1e-2, 5e-3, 5e-3, 2.5e-3, 2.5e-3]):
        torch.manual_seed(derive(5, "dropout", step))
        optimizer.param_groups[0]["lr"] = lr
        masked = {name: weight * masks.get(name, 1.0) for name, weight in parameters.items()}
        losses = goal.losses(functional_call(free, masked, data[step % 3].images), data[step % 3])
        optimizer.zero_grad()
        goal.total(losses).backward()
        optimizer.step()
    for name, weight in model.named_parameters():
        expected = parameters[name] * masks.get(name, 1.0)
        torch.testing.assert_close(weight, expected, msg=name)
    assert (model.trunk[0].weight - network().trunk[0].weight.double()).abs().max() > 1e-2


def test_the_learning_rate_of_every_step_is_the_recipes(tmp_path, monkeypatch):
    rates = []
    step = torch.optim.Adam.step

    def watched(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    recipe = Recipe(steps=7, batch=2, crop=6, lr=0.8, lr_decay=0.5, lr_decay_every=3)
    train(training(network(), tmp_path, recipe=recipe), {})
    assert rates == [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2]


def test_the_losses_of_every_step_are_written_down_not_weighted(tmp_path):
    first = batches(LOSSES)[0]
    untrained = network()
    torch.manual_seed(derive(5, "dropout", 0))
    expected = objective(LOSSES).losses(untrained(first.images), first)
    train(training(network(), tmp_path), {})
    entries = [json.loads(line) for line in (tmp_path / HISTORY).read_text().splitlines()]
    assert [entry["step"] for entry in entries] == list(range(12))
    assert entries[0]["losses"] == {task: loss.item() for task, loss in expected.items()}


def test_the_weights_with_the_lowest_loss_are_selected_at_the_first_of_equals(tmp_path):
    model = network()
    losses = iter([3.0, 1.0, 1.0])
    kept = []

    def select():
        kept.append({name: tensor.clone() for name, tensor in weights_of(model).items()})
        return next(losses)

    train(training(model, tmp_path, select=select), {})
    assert len(kept) == 3, "12 steps, one evaluation every 4"
    assert all(torch.equal(tensor, kept[1][name]) for name, tensor in weights_of(model).items())
    assert not torch.equal(model.trunk[0].weight, kept[2]["trunk.0.weight"])


def test_weights_are_selected_only_with_the_masks_of_the_last_update(tmp_path):
    model = network()
    first, second = random_masks(model, 0.8), random_masks(model, 0.3)
    losses = iter([1.0, 2.0])  # after steps 8 and 12, not after 4
    end = train(
        training(
            model,
            tmp_path,
            plan=(Update(2, 0.2), Update(5, 0.7)),
            update=lambda update, current, batch: (first if update.step == 2 else second, {}),
            select=lambda: next(losses),
        ),
        {},
    )
    assert all(torch.equal(end.masks[name], mask) for name, mask in second.items())
    assert all((dict(model.named_parameters())[name][~mask] == 0).all() for name, mask in second.items())
    assert next(losses, None) is None


class Late:
    """A learner that reaches its sparsity at step `at` and learns nothing."""

    def __init__(self, model, at):
        self.model, self.at, self.step = model, at, 0

    def parameter_groups(self):
        return [{"params": list(self.model.parameters())}]

    def observe(self, losses, step):
        self.step = step + 1

    def total(self, losses):
        return objective(LOSSES).total(losses)

    def after_backward(self):
        pass

    @property
    def reached(self):
        return self.step >= self.at

    def state(self):
        return {}

    def finish(self):
        return random_masks(self.model)


def test_learned_masks_are_selected_only_where_the_sparsity_is_reached(tmp_path):
    model = network()
    losses = iter([1.0, 2.0])  # after steps 8 and 12, not after 4
    train(training(model, tmp_path, learner=Late(model, 7), select=lambda: next(losses)), {})
    assert next(losses, None) is None
    assert load_tensors(tmp_path / BEST) is not None


def test_where_no_loss_is_a_number_the_last_weights_stand(tmp_path):
    model = network()
    masks = random_masks(model)
    assert train(training(model, tmp_path, select=lambda: math.nan), masks).masks == masks
    assert not (tmp_path / BEST).exists()


def test_selected_weights_that_are_gone_are_an_error_and_the_next_try_starts_anew(tmp_path):
    losses = iter([1.0, 2.0])

    def select():
        value = next(losses, None)
        if value is None:
            (tmp_path / BEST).unlink()
        return value or 3.0

    with pytest.raises(StoreError, match=r"The selected weights in .* are gone. Run again to train anew."):
        train(training(network(), tmp_path, select=select, checkpoint_seconds=0), {})
    assert not (tmp_path / CHECKPOINT).exists()


def test_training_does_not_disturb_the_callers_generator(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    model = network()
    torch.manual_seed(3)
    train(training(model, tmp_path), {})
    assert torch.equal(torch.rand(2), expected)


def test_a_training_stopped_at_any_step_ends_with_the_same_bits(tmp_path):
    masks = random_masks(network())
    whole = network()
    train(training(whole, tmp_path), masks)
    for stop in (1, 5, 11):
        folder = tmp_path / str(stop)
        folder.mkdir()

        def break_off(step, losses, stop=stop):
            if step == stop:
                raise KeyboardInterrupt

        watch = Watch(break_off, lambda step, before, after: None)
        with pytest.raises(KeyboardInterrupt):
            train(training(network(), folder, watch=watch, checkpoint_seconds=0), masks)
        resumed = network(seed=9)
        train(training(resumed, folder, checkpoint_seconds=0), masks)
        assert all(torch.equal(tensor, weights_of(whole)[name]) for name, tensor in weights_of(resumed).items())


def test_a_loss_that_is_not_finite_names_task_and_step_and_is_in_the_history(tmp_path):
    data = batches(LOSSES)
    data[2].targets["b"].fill_(math.inf)
    stream = {"batches": lambda step: iter(data[step:] * 9)}
    with pytest.raises(DivergedError, match=r"task 'b' is inf at step 2. Lower train.lr"):
        train(training(network(), tmp_path, **stream), {})
    assert len((tmp_path / HISTORY).read_text().splitlines()) == 3


@pytest.mark.parametrize("other", ["names", "shapes"])
def test_weights_of_another_model_are_refused(other):
    model = network()
    before = {name: tensor.clone() for name, tensor in weights_of(model).items()}
    stranger = Toy(["a"]) if other == "names" else Toy(sorted(LOSSES), width=5)
    with pytest.raises(StoreError, match=r"belong to another model. Move the folder away and run again."):
        load_weights(model, weights_of(stranger))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(model).items())


def test_weights_and_buffers_are_copied_into_a_model():
    model, other = network(), network(seed=1)
    other.trunk[1].running_mean.fill_(7)
    load_weights(model, weights_of(other))
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert model.trunk[0].weight.data_ptr() != other.trunk[0].weight.data_ptr()
    assert model.trunk[0].weight.requires_grad
