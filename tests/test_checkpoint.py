"""Checkpoints: tensors come back to the bit, every flipped bit is noticed, and nothing is ever unpickled."""

import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtlprune_bench.files import set_aside
from mtlprune_bench.training.checkpoint import load_masks, load_tensors, save_masks, save_tensors

TENSORS = {
    "float32": torch.tensor([[1.5, -0.0], [float("inf"), 1e-45]]),
    "nan": torch.tensor([float("nan")]),
    "bool": torch.tensor([True, False, True]),
    "int64": torch.tensor([-(2**63), 2**63 - 1]),
    "scalar": torch.tensor(3.0),
    "empty": torch.empty(0, 4),
    "bfloat16": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
    "turned": torch.arange(6.0).reshape(2, 3).T,
}


def same(first, second):
    """Return whether two tensors are of one type and shape and hold the same bits."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    views = (tensor.contiguous().flatten().view(torch.uint8) for tensor in (first, second))
    return torch.equal(*views)


def test_tensors_of_every_type_and_facts_come_back(tmp_path):
    facts = {"step": 7, "best": float("inf"), "names": ["ü", None]}
    save_tensors(tmp_path / "file", TENSORS, facts)
    tensors, read = load_tensors(tmp_path / "file")
    assert tensors.keys() == TENSORS.keys()
    assert all(same(tensors[name], TENSORS[name]) for name in TENSORS)
    assert read == facts


def test_equal_contents_are_equal_bytes_whatever_their_order(tmp_path):
    save_tensors(tmp_path / "a", TENSORS, {"a": 1, "b": 2})
    save_tensors(tmp_path / "b", dict(reversed(TENSORS.items())), {"b": 2, "a": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_weights_that_need_a_gradient_can_be_saved(tmp_path):
    save_tensors(tmp_path / "file", {"weight": torch.nn.Parameter(torch.arange(4.0))})
    tensors, facts = load_tensors(tmp_path / "file")
    assert same(tensors["weight"], torch.arange(4.0))
    assert facts == {}


def test_what_is_not_there_is_none(tmp_path):
    assert load_tensors(tmp_path / "file") is None
    assert load_masks(tmp_path / "file") is None


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_bit_is_noticed(tmp_path, data):
    path = tmp_path / "file"
    save_tensors(path, TENSORS, {"step": 7})
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="file is damaged"):
        assert load_tensors(path) is None
    aside = tmp_path / "file.damaged-1"
    assert aside.read_bytes() == content
    aside.unlink()


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, -1])
def test_a_file_that_was_cut_off_is_moved_aside(tmp_path, length):
    path = tmp_path / "file"
    save_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.warns(UserWarning, match="file is damaged"):
        assert load_tensors(path) is None
    assert not path.exists()


def test_safetensors_of_somebody_else_are_moved_aside(tmp_path):
    import safetensors.torch

    for number, metadata in enumerate([None, {"other": "x"}, {"mtlprune-bench": "5"}], start=1):
        safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "file", metadata)
        with pytest.warns(UserWarning, match=f"kept as file.damaged-{number}"):
            assert load_tensors(tmp_path / "file") is None


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return set_aside, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_is_moved_aside_and_never_executed(tmp_path, save):
    bait = tmp_path / "bait"
    bait.write_text("here")
    save({"weight": torch.zeros(1), "trap": Trap(bait)}, tmp_path / "weights.safetensors")
    data = (tmp_path / "weights.safetensors").read_bytes()
    with pytest.warns(UserWarning, match=r"weights.safetensors is damaged.*kept as weights.safetensors.damaged-1"):
        assert load_tensors(tmp_path / "weights.safetensors") is None
    assert bait.exists()
    assert (tmp_path / "weights.safetensors.damaged-1").read_bytes() == data


def test_masks_come_back_at_one_bit_a_weight(tmp_path):
    generator = torch.Generator().manual_seed(0)
    masks = {
        "conv": torch.rand(5, 3, 3, 3, generator=generator) > 0.5,
        "bias": torch.tensor([True] * 9),
        "scalar": torch.tensor(True),
        "large": torch.rand(80_000, generator=generator) > 0.9,
    }
    save_masks(tmp_path / "a", masks)
    loaded = load_masks(tmp_path / "a")
    assert all(same(loaded[name], mask) for name, mask in masks.items())
    save_masks(tmp_path / "b", loaded)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_size < 80_000 / 8 + 1000


FILL = """
import sys, torch
from pathlib import Path
from mtlprune_bench.training.checkpoint import save_tensors
from mtlprune_bench.errors import StoreError
try:
    save_tensors(Path(sys.argv[1]), {"large": torch.zeros(100_000)})
except StoreError as error:
    print(error)
"""


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_named_and_the_old_one_stays(tmp_path):
    path = tmp_path / "file"
    save_tensors(path, {"old": torch.ones(1)})
    # A limit on the size of files fails in the same place as a full disk.
    answer = subprocess.run(
        [sys.executable, "-c", FILL, str(path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert answer.stdout.startswith(f"Cannot write {path}: "), answer.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert load_tensors(path)[0]["old"] == 1
