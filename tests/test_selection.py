"""Selection by windows against the definition by ranks: the same masks, to the bit, ties and all."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlprune_bench import AND, MAJORITY, OR, AtLeast, Majority
from mtlprune_bench.pruning import selection
from mtlprune_bench.pruning.selection import by_ranks, by_windows, select, widths

ARBITERS = (OR, AND, MAJORITY, Majority("prune"), AtLeast(2))
SHAPES = {"trunk.0": (40, 30), "trunk.1": (70, 20, 3), "a.0": (50, 40), "pair.0": (900,), "b.0": (31, 7)}
USERS = {"trunk.0": (0, 1, 2), "trunk.1": (0, 1, 2), "a.0": (0,), "pair.0": (1, 2), "b.0": (2,)}


def opinions(seed, levels=0, agreement=0.5, zeros=0.0):
    """Return the scores of three voters; with few `levels` most are equal to others."""
    generator = torch.Generator().manual_seed(seed)
    common = {name: torch.rand(shape, generator=generator) for name, shape in SHAPES.items()}
    voters = []
    for voter in range(3):
        own = {}
        for name in SHAPES:
            if voter in USERS[name]:
                noise = torch.rand(SHAPES[name], generator=generator)
                score = agreement * common[name] + (1 - agreement) * noise
                score = torch.where(torch.rand(SHAPES[name], generator=generator) < zeros, 0.0, score)
                own[name] = (score * levels).round() / levels if levels else score
        voters.append(own)
    return voters


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_windows_keep_what_ranks_keep(data):
    scores = opinions(
        data.draw(st.integers(0, 10**6)),
        levels=data.draw(st.sampled_from([0, 2, 50])),
        agreement=data.draw(st.sampled_from([0.0, 0.5, 1.0])),
        zeros=data.draw(st.sampled_from([0.0, 0.3, 0.9])),
    )
    total = sum(torch.Size(shape).numel() for shape in SHAPES.values())
    kept = data.draw(st.integers(0, total))
    arbiter = data.draw(st.sampled_from(ARBITERS))
    names = list(SHAPES)
    width = data.draw(st.sampled_from([0.01, 0.1, 0.5]))
    found = by_windows(scores, names, kept, arbiter, width)
    expected = by_ranks(scores, names, kept, arbiter)
    assert sum(int(mask.sum()) for mask in expected.values()) == kept
    assert found is None or same(found, expected)


@pytest.mark.parametrize("arbiter", ARBITERS, ids=lambda arbiter: arbiter.name)
@pytest.mark.parametrize("density", [0.03, 0.1, 0.5, 0.97])
def test_windows_do_not_miss(arbiter, density):
    for seed in range(5):
        scores = opinions(seed)
        kept = round(density * 8517)
        found = by_windows(scores, list(SHAPES), kept, arbiter, 0.1)
        assert found is not None
        assert same(found, by_ranks(scores, list(SHAPES), kept, arbiter))


@pytest.mark.parametrize("arbiter", ARBITERS, ids=lambda arbiter: arbiter.name)
@pytest.mark.parametrize("zeros", [0.0, 0.4])
def test_only_what_may_stay_does(arbiter, zeros):
    for seed, share in itertools.product(range(3), (0.2, 0.8)):
        generator = torch.Generator().manual_seed(seed)
        among = {name: torch.rand(shape, generator=generator) < share for name, shape in SHAPES.items()}
        scores = [
            {name: score.masked_fill(~among[name], -torch.inf) for name, score in own.items()}
            for own in opinions(seed, zeros=zeros)
        ]
        kept = sum(int(mask.sum()) for mask in among.values()) // 3
        found = by_windows(scores, list(SHAPES), kept, arbiter, 0.1, among)
        assert found is not None
        assert same(found, by_ranks(scores, list(SHAPES), kept, arbiter, among))
        assert not any((mask & ~among[name]).any() for name, mask in found.items())


def test_a_window_that_misses_is_said_and_made_up_for(monkeypatch):
    scores, names = opinions(1), list(SHAPES)
    monkeypatch.setattr(selection, "_span", lambda sample, middle, width: (2.0, 3.0))
    assert by_windows(scores, names, 1000, OR, 0.1) is None
    monkeypatch.setattr(selection, "MANY", 0)
    assert same(select(scores, names, 1000, OR), by_ranks(scores, names, 1000, OR))


def test_many_weights_are_selected_by_windows_and_few_or_other_arbiters_by_ranks(monkeypatch):
    used = []
    original = by_windows
    monkeypatch.setattr(
        selection, "by_windows", lambda *given, **named: used.append(given[4]) or original(*given, **named)
    )
    scores, names = opinions(2), list(SHAPES)
    mean = lambda ranks: ranks.mean(0)  # noqa: E731
    few = select(scores, names, 500, OR)
    assert not used
    monkeypatch.setattr(selection, "MANY", 1000)
    assert same(select(scores, names, 500, OR), few)
    assert used
    assert used == list(widths(8517)[: len(used)])
    used.clear()
    assert same(select(scores, names, 500, mean), by_ranks(scores, names, 500, mean))
    assert not used
