"""Precision and accumulation: fewer digits or smaller pieces, in training only, with exact masks all the same."""

import copy
import json
import math

import pytest
import torch
import toys
from test_processes import PLUGIN, load_registry, request_of
from toys import Toy, batches, objective

from mtlprune_bench import Recipe
from mtlprune_bench.errors import UsageError
from mtlprune_bench.processes import ALONE
from mtlprune_bench.pruning.masks import sparsity
from mtlprune_bench.runs.experiment import recipe_text
from mtlprune_bench.runs.suite import prepare_all, run_all
from mtlprune_bench.seeds import derive
from mtlprune_bench.store import Store, read_history, read_rows
from mtlprune_bench.training.checkpoint import load_masks, load_tensors
from mtlprune_bench.training.state import CHECKPOINT, State
from mtlprune_bench.training.train import HISTORY, train

LOSSES = {"a": 1.0, "b": 2.0}
RECIPE = Recipe(steps=12, batch=2, crop=6, lr=1e-2)


def recipe(**changes):
    return Recipe(**{"steps": 12, "batch": 2, "crop": 6, "lr": 1e-2, **changes})


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return Toy(sorted(LOSSES)).to(dtype)


def trained(folder, dtype=torch.float32, interrupt=None, **changes):
    """Return a network after a training, and the steps written down; stop it at step `interrupt` and go on."""
    folder.mkdir(exist_ok=True)
    model, plain = network(dtype), recipe(**changes)

    def watched(step, losses):
        if step == interrupt:
            raise KeyboardInterrupt

    options = {"recipe": plain, "checkpoint_seconds": 0}
    if interrupt is not None:
        once = toys.training(
            network(dtype), folder, LOSSES, **options, watch=toys.Watch(watched, lambda *masks: None)
        )
        with pytest.raises(KeyboardInterrupt):
            train(once, {})
    data = batches(LOSSES)
    stream = {"batches": lambda step: (data[n % 3].to("cpu", dtype) for n in range(step, 10_000))}
    train(toys.training(model, folder, LOSSES, **options, **stream), {})
    return model, list(read_history(folder / HISTORY))


def test_accumulated_gradients_are_the_mean_over_pieces(tmp_path):
    options = {"precision": "fp64", "weight_decay": 0.0}
    model, history = trained(tmp_path, torch.float64, accumulate=2, **options)
    slow = network(torch.float64)
    optimizer = torch.optim.Adam(slow.parameters(), lr=1e-2)
    goal, data = objective(LOSSES), batches(LOSSES)
    for step in range(12):
        torch.manual_seed(derive(5, "dropout", step))
        slow.train()
        pieces = data[step % 3].to("cpu", torch.float64).parts(2)
        losses = [goal.losses(slow(piece.images), piece) for piece in pieces]
        means = {task: (losses[0][task] + losses[1][task]) / 2 for task in LOSSES}
        optimizer.zero_grad()
        (means["a"] + 2 * means["b"]).backward()
        optimizer.step()
        expected = {task: loss.item() for task, loss in means.items()}
        assert history[step]["losses"] == pytest.approx(expected, rel=1e-9)
    for one, other in zip(model.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)
    alone, _ = trained(tmp_path / "whole", torch.float64, **options)
    assert not torch.allclose(alone.trunk[0].weight, model.trunk[0].weight, atol=1e-4)


class Adaptive:
    """A learner that weights each task by its last loss that it was told."""

    reached = True

    def __init__(self, model):
        self.model, self.told, self.asked = model, [], []

    def parameter_groups(self):
        return [{"params": list(self.model.parameters())}]

    def observe(self, losses, step):
        self.told.append((step, losses["a"].item()))

    def total(self, losses):
        self.asked.append(len(self.told))
        return objective(LOSSES).total(losses)

    def after_backward(self):
        pass

    def state(self):
        return {}

    def finish(self):
        return {}


@pytest.mark.parametrize(("pieces", "asked"), [(1, [1, 2, 3]), (2, [0, 0, 1, 1, 2, 2])])
def test_a_learner_is_told_the_loss_of_a_whole_batch_once_a_step(tmp_path, pieces, asked):
    model = network()
    learner = Adaptive(model)
    changes = {"recipe": recipe(steps=3, accumulate=pieces), "learner": learner}
    train(toys.training(model, tmp_path, LOSSES, **changes), {})
    history = [(entry["step"], pytest.approx(entry["losses"]["a"])) for entry in read_history(tmp_path / HISTORY)]
    assert learner.told == history
    assert learner.asked == asked


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_full_precision_and_keeps_full_weights(tmp_path, precision):
    model, history = trained(tmp_path / "half", precision=precision)
    _, plain = trained(tmp_path / "full")
    assert len(history) == 12
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    first, second = history[0]["losses"], plain[0]["losses"]
    assert first == pytest.approx(second, rel=0.02)
    assert first != second
    assert all(math.isfinite(loss) for entry in history for loss in entry["losses"].values())


def test_fp16_goes_on_where_it_was_stopped_with_the_same_scale(tmp_path):
    whole, history = trained(tmp_path / "whole", precision="fp16")
    pieces, resumed = trained(tmp_path / "pieces", precision="fp16", interrupt=6)
    assert resumed == history
    for one, other in zip(whole.parameters(), pieces.parameters(), strict=True):
        assert torch.equal(one, other)
    facts = load_tensors(tmp_path / "pieces" / CHECKPOINT)[1]
    assert facts["scaler"]["_growth_tracker"] == 12


def test_a_step_whose_gradients_overflow_is_passed_over_and_written_down(tmp_path, monkeypatch):
    before = copy.deepcopy(network())
    plain = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda device, enabled: plain(device, init_scale=1e30, enabled=enabled)
    )
    model, history = trained(tmp_path, precision="fp16", steps=3)
    assert len(history) == 3
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert load_tensors(tmp_path / CHECKPOINT)[1]["scaler"]["scale"] == pytest.approx(1e30 / 8)


def test_double_precision_is_double_throughout(tmp_path):
    model, history = trained(tmp_path / "double", torch.float64, precision="fp64")
    _, plain = trained(tmp_path / "full")
    assert all(parameter.dtype == torch.float64 for parameter in model.parameters())
    for entry, other in zip(history, plain, strict=True):
        assert entry["losses"] == pytest.approx(other["losses"], rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", ["rigl", "adapmtl"])
def test_runs_with_half_precision_end_with_exact_masks(tmp_path, precision, method):
    registry = load_registry([PLUGIN])
    asked = request_of(method, precision=precision)
    asked.settings["finetune"].pop("precision")
    asked.settings["method"] = {"s_init": -6, "exact_finalize": True} if method == "adapmtl" else {}
    (outcome,) = run_all([asked], Store(tmp_path), registry, lambda text: None)
    assert outcome.good, outcome
    masks = load_masks(tmp_path / outcome.name / "masks.safetensors")
    count = sum(mask.numel() for mask in masks.values())
    assert abs(sparsity(masks) - 0.5) <= 1 / count
    rows = read_rows(tmp_path / outcome.name)
    assert all(math.isfinite(row["value"]) for row in rows)
    assert rows[0]["recipe"].startswith(f"16 steps, batch 5, crop 16, {precision} [")


def test_precision_and_pieces_name_a_run_and_their_defaults_do_not():
    registry = load_registry([PLUGIN])
    changes = [{}, {"precision": "fp32"}, {"precision": "bf16"}, {"accumulate": 2}, {"accumulate": 1}]
    runs = []
    for change in changes:
        asked = request_of("snip")
        asked.settings["train"] = change
        asked.settings["finetune"] = {}
        runs.append(prepare_all([asked], registry, lambda text: None)[0].config.run_id)
    assert runs[0] == runs[1] == runs[4]
    assert len(set(runs)) == 3
    assert recipe_text(recipe(accumulate=2, precision="bf16")).startswith(
        "12 steps, batch 2 in 2 pieces, crop 6, bf16 ["
    )
    assert recipe_text(RECIPE).startswith("12 steps, batch 2, crop 6 [")


def test_what_cannot_be_computed_is_said_before_it_begins():
    for changes, words in (
        ({"accumulate": 0}, "accumulate of a recipe is 0; it must be 1 or more"),
        ({"accumulate": 3}, "accumulate of a recipe is 3; it must be at most batch, which is 2"),
        ({"precision": "fp8"}, "precision of a recipe is fp8; it must be fp32, bf16, fp16 or fp64"),
    ):
        with pytest.raises(UsageError, match=words):
            recipe(**changes)
    asked = request_of("toy-finetune")
    asked.settings["finetune"] = {}
    with pytest.raises(UsageError, match=r"fp64 is that of the weights.*as --precision fp64 does"):
        prepare_all([asked], load_registry([PLUGIN]), lambda text: None)


def test_a_checkpoint_without_a_scale_is_one_of_full_precision(tmp_path):
    model = network()
    state = State(model, torch.optim.Adam(model.parameters()), {}, None)
    state.save(tmp_path)
    assert load_tensors(tmp_path / CHECKPOINT)[1]["scaler"] == {}
    assert state.processes == ALONE
    assert json.dumps(load_tensors(tmp_path / CHECKPOINT)[1])
