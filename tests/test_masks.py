"""Masks: exact counts, ties by index, bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import pruning as reference

from mtlprune_bench.pruning import masks
from mtlprune_bench.pruning.masks import keep_top, kept_count, pack, sparsity, unpack
from mtlprune_bench.pruning.ranks import ranks

few = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=30)


@given(few, st.data())
@settings(deadline=None, max_examples=100, derandomize=True)
def test_keep_top_is_the_mask_of_the_sorted_list(scores, data):
    kept = data.draw(st.integers(0, len(scores)))
    cut = data.draw(st.integers(0, len(scores)))
    parts = {"a": torch.tensor(scores[:cut]), "b": torch.tensor(scores[cut:])}
    masks = keep_top(parts, kept)
    assert [*masks["a"].tolist(), *masks["b"].tolist()] == reference.own_mask(scores, kept)


@given(few)
@settings(deadline=None, max_examples=100, derandomize=True)
def test_ranks_are_those_of_the_sorted_list(scores):
    ranked = ranks({"a": torch.tensor(scores)})["a"]
    assert ranked.dtype == torch.float64
    assert ranked.tolist() == pytest.approx(reference.rank_of_each(scores), abs=1e-12)


def test_equal_scores_are_kept_by_index_and_never_beyond_the_count():
    masks = keep_top({"a": torch.zeros(2, 3), "b": torch.zeros(4)}, 7)
    assert masks["a"].all()
    assert masks["b"].tolist() == [True, False, False, False]


def test_ranks_do_not_collide_where_float32_would():
    ranked = ranks({"a": torch.arange(2**24 + 4, dtype=torch.float32)})["a"]
    assert len(torch.unique(ranked[-8:])) == 8


@pytest.mark.parametrize(
    ("total", "asked", "kept"), [(100, 0.9, 10), (10, 0.0, 10), (7, 0.5, 3), (1000, 0.999, 1)]
)
def test_kept_count_rounds_to_the_nearest_weight(total, asked, kept):
    assert abs(kept_count(total, asked) - kept) <= 1
    assert abs(1 - kept_count(total, asked) / total - asked) * total <= 0.5 + 1e-9


def test_sparsity_counts_the_named_masks():
    masks = {"a": torch.tensor([True, False, False, False]), "b": torch.ones(6, dtype=torch.bool)}
    assert sparsity(masks) == pytest.approx(0.3)
    assert sparsity(masks, ["a"]) == 0.75
    assert sparsity(masks, []) == 0.0


@given(st.lists(st.booleans(), min_size=1, max_size=70))
@settings(deadline=None, max_examples=50, derandomize=True)
def test_bits_give_the_mask_back(bits):
    mask = torch.tensor(bits)
    assert len(pack(mask)) == (len(bits) + 7) // 8
    assert torch.equal(unpack(pack(mask), mask.shape), mask)


@pytest.mark.parametrize("equal", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_k_th_largest_of_many_is_exact_whatever_is_equal(equal, dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5 * masks.DRAWN, generator=generator, dtype=torch.float64).to(dtype)
    values[torch.rand(len(values), generator=generator) < equal] = -torch.inf
    ordered = values.sort(descending=True).values
    for k in (1, 2, 700, len(values) // 20, len(values) // 2, len(values) - 1, len(values)):
        assert masks.kth_largest(values, k) == ordered[k - 1]
        kept = masks.keep_top({"weight": values}, k)["weight"]
        assert kept.sum() == k
        assert values[kept].min() == ordered[k - 1]
        ties = masks.places(values == ordered[k - 1])
        assert torch.equal(kept[ties], torch.arange(len(ties)) < kept[ties].sum())


def test_where_a_sample_misses_all_values_are_sorted(monkeypatch):
    values = torch.rand(5 * masks.DRAWN, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(masks, "MARGIN", 0)
    assert masks.kth_largest(values, 1000) == values.sort(descending=True).values[999]
