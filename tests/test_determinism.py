"""What repeats: everything on a CPU; and what does not is found, and said."""

import json

import pytest
import torch

from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.runs.doctor import Finding
from mtlprune_bench.testing import determinism as module
from mtlprune_bench.testing.determinism import Interruption, determinism, difference


@pytest.fixture(scope="module")
def registry():
    return load_registry()


def test_everything_repeats_on_a_cpu_to_the_bit_when_both_trainings_are_interrupted(
    registry, tmp_path, monkeypatch
):
    interruption = Interruption()
    monkeypatch.setattr(module, "Interruption", lambda: interruption)
    found = list(determinism(registry, tmp_path, "cpu"))
    assert [each.verdict for each in found] == ["ok"] * 12, found
    assert {each.found for each in found} == {"identical to the bit"}
    assert [each.subject.split(", ")[1] for each in found] == ["made twice"] * 6 + ["interrupted"] * 6
    assert interruption.met == {"dense training", "training"}


def test_what_does_not_repeat_is_a_problem_on_a_cpu_and_a_warning_elsewhere(registry, tmp_path, monkeypatch):
    made = iter(
        [{"weights": {"a": 1.0, "b": 2.0}}, {"weights": {"a": 1.0, "b": 2.25}}, {"weights": {"a": 1.0, "b": 2.0}}]
    )
    monkeypatch.setattr(module, "_made", lambda *given: next(made))
    bad, good = determinism(registry, tmp_path, "cpu")
    assert (bad.subject, bad.verdict) == ("weights, made twice, cpu", "problem")
    assert bad.found == "1 of 2 differ, by 0.2 at most"
    assert (good.subject, good.verdict) == ("weights, interrupted, cpu", "ok")
    assert module._finding("weights", "2 of 3 differ", exact=False).verdict == "warning"


def test_doctor_tells_it_and_a_problem_is_its_exit_code(mtlbench, monkeypatch):
    problem = Finding("determinism", "masks, made twice, cpu", "problem", "1 of 9 differ", "Report it.")
    monkeypatch.setattr(module, "determinism", lambda registry, folder: iter([problem]))
    answer = mtlbench("doctor", "--determinism", "--no-run", "--json")
    assert answer.code == 1
    assert [each["found"] for each in json.loads(answer.out) if each["area"] == "determinism"] == ["1 of 9 differ"]


def test_a_run_that_fails_is_one_problem(registry, tmp_path, monkeypatch):
    def broken(*given, **more):
        raise RuntimeError("out of order")

    monkeypatch.setattr(module, "execute", broken)
    (found,) = determinism(registry, tmp_path, "cpu")
    assert (found.verdict, found.found) == ("problem", "RuntimeError: out of order")


def test_differences_are_counted_to_the_bit():
    whole = {"a": torch.tensor([1.0, float("nan"), 0.0]), "b": 2.0}
    assert difference(whole, {"a": torch.tensor([1.0, float("nan"), 0.0]), "b": 2.0}) == ""
    assert difference(whole, {"a": torch.tensor([1.0, 3.0, 0.5]), "b": 2.0}).startswith("2 of 4 differ")
    assert difference({"a": torch.tensor([0.0])}, {"a": torch.tensor([-0.0])}) == "1 of 1 differ, by 0 at most"
    assert "not of the same" in difference(whole, {"a": torch.zeros(3)})
    assert "not of the same" in difference({}, {})
    assert difference({"m": torch.tensor([True])}, {"m": torch.tensor([False])}) == "1 of 1 differ, by 1 at most"
