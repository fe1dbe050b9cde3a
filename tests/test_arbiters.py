"""Arbiters against truth tables: merged ranks above 1 - r are the votes at keep ratio r."""

import itertools

import pytest
import torch

from mtlprune_bench import AND, MAJORITY, OR, AtLeast, Majority, Quorum, UsageError

NEEDED = {
    "or": (OR, lambda users: 1),
    "and": (AND, lambda users: users),
    "majority": (MAJORITY, lambda users: -(-users // 2)),
    "strict-majority": (Majority("prune"), lambda users: users // 2 + 1),
    "at-least:2": (AtLeast(2), lambda users: min(2, users)),
}


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize("users", [2, 3, 4, 5])
def test_truth_table(name, users):
    arbiter, needed = NEEDED[name]
    votes = torch.tensor(list(itertools.product([0.0, 1.0], repeat=users)), dtype=torch.float64).T
    assert torch.equal(arbiter(votes) > 0, votes.sum(0) >= needed(users))
    assert arbiter.name == name


@pytest.mark.parametrize("name", NEEDED)
def test_merging_ranks_then_cutting_is_cutting_then_voting(name):
    arbiter, needed = NEEDED[name]
    ranks = torch.rand(5, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for ratio in (0.05, 0.3, 0.5, 0.9):
        votes = (ranks > 1 - ratio).sum(0)
        assert torch.equal(arbiter(ranks) > 1 - ratio, votes >= needed(5))


@pytest.mark.parametrize("name", NEEDED)
def test_one_user_decides_alone_and_order_is_irrelevant(name):
    arbiter, _ = NEEDED[name]
    ranks = torch.rand(4, 50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(arbiter(ranks[:1]), ranks[0])
    assert torch.equal(arbiter(ranks), arbiter(ranks.flip(0)))


def test_and_is_within_majority_is_within_or():
    ranks = torch.rand(5, 100, generator=torch.Generator().manual_seed(2))
    assert (AND(ranks) <= Majority("prune")(ranks)).all()
    assert (Majority("prune")(ranks) <= MAJORITY(ranks)).all()
    assert (MAJORITY(ranks) <= OR(ranks)).all()


@pytest.mark.parametrize("votes", ["0", "x", "", "-1"])
def test_a_quorum_needs_a_number(votes):
    with pytest.raises(UsageError, match="whole number"):
        Quorum().with_argument(votes)
