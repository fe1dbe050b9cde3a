"""Measuring: multiplications against hand counts and torch's counter, kernels against dense layers, and words."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_commands import refused
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from toys import Toy, Tree

from mtlprune_bench.commands import run_cli
from mtlprune_bench.export import measure as module
from mtlprune_bench.export import timing as timing_module
from mtlprune_bench.export.formats import export, open_subject
from mtlprune_bench.export.kernels import held_bytes, pruned, sparse_copy, two_of_four
from mtlprune_bench.export.measure import DENSE, MASKED, SPARSE, UNUSED, count, findings, measure
from mtlprune_bench.export.timing import WARM_UP, Timing, peak_bytes, time_variants
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.store import WHOLE, Store, read_rows

PLUGIN = str(Path(__file__).parent / "toy_plugin.py")
TOY = ("--plugin", PLUGIN)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return a store with a sparse run and a dense one."""
    folder = tmp_path_factory.mktemp("store")
    options = ("--sparsity", "0.9", "--store", str(folder), "--set", "train.steps=2")
    assert run_cli(["run", *TOY, "--dataset", "toy", "--method", "snip,dense", *options]) == 0
    return folder


@pytest.fixture(scope="module")
def subject(store):
    return open_subject(Store(store).find("snip"), load_registry([PLUGIN]))


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def zeroed(network, share=0.7, seed=0):
    """Set a share of every weight of at least two dimensions to zero and return the masks."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, weight in network.named_parameters():
        if weight.ndim > 1:
            masks[name] = torch.rand(weight.shape, generator=generator) > share
            weight.data[~masks[name]] = 0
    return masks


# Counting


def test_multiplications_of_a_small_network_are_those_counted_by_hand():
    network = Toy(["a", "b"]).eval()
    with torch.no_grad():
        network.trunk[0].weight[0] = 0  # 27 weights of the first convolution
    whole, shared, first, second = count(network, images(2, 3, 6, 6))
    # 6 x 6 pixels see 3 x 3 x 3 weights for 4 channels; then, without padding, 4 x 4 see 4 x 3 x 3 for 4.
    assert (shared.name, shared.weights, shared.macs) == ("shared", 108 + 144, 36 * 108 + 16 * 144)
    assert (shared.nonzero, shared.sparse_macs) == (81 + 144, 36 * 81 + 16 * 144)
    assert [(head.name, head.weights, head.macs) for head in (first, second)] == [("a", 8, 128), ("b", 8, 128)]
    assert (whole.name, whole.weights, whole.macs) == (WHOLE, 268, 36 * 108 + 16 * 144 + 256)


def test_weights_that_no_task_uses_are_a_part_of_their_own():
    network = Tree().eval()
    parts = {part.name: part for part in count(network, images(1, 3, 5, 7))}
    assert set(parts) == {WHOLE, "shared", "a+b", "a", "b", "c", UNUSED}
    assert (parts[UNUSED].weights, parts[UNUSED].macs) == (4, 0)
    assert parts["shared"].macs == 35 * 12
    assert parts["a+b"].macs == 35 * 16
    assert parts["c"].macs == 35 * 8, "a linear layer is applied to each of 5 x 7 pixels"
    assert parts[WHOLE].weights == sum(part.weights for name, part in parts.items() if name != WHOLE)


class Layers(nn.Module):
    """Every kind of layer whose multiplications are counted, one of them used twice."""

    def __init__(self):
        super().__init__()
        self.strided = nn.Conv2d(3, 6, (3, 5), stride=2, padding=1, bias=False)
        self.grouped = nn.Conv2d(6, 6, 3, groups=3, dilation=2)
        self.up = nn.ConvTranspose2d(6, 4, 4, stride=2)
        self.twice = nn.Conv2d(4, 4, 1)
        self.linear = nn.Linear(4, 2)

    def forward(self, inputs):
        hidden = self.up(self.grouped(self.strided(inputs)))
        hidden = self.twice(self.twice(hidden))
        return {"a": self.linear(hidden.movedim(1, -1)).movedim(-1, 1), "b": hidden}


@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_multiplications_agree_with_torchs_counter(size):
    network, batch = Layers().eval(), images(2, 3, *size)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(batch)
    assert 2 * len(batch) * count(network, batch)[0].macs == counter.get_total_flops()


def test_counting_leaves_no_hooks_and_no_modes():
    network = Layers().train()
    count(network, images(1, 3, 32, 32))
    assert network.training
    assert not any(layer._forward_hooks for layer in network.modules())


def test_the_whole_and_its_components_fit_the_rows_of_the_run(subject, store):
    parts = {part.name: part for part in count(subject.network, subject.images)}
    rows = [row for row in read_rows(Store(store).find("snip")) if row["metric"] == "sparsity"]
    assert {row["component"] for row in rows} == set(parts)
    for row in rows:
        part = parts[row["component"]]
        assert 1 - part.nonzero / part.weights == pytest.approx(row["value"], abs=1e-12)


# Sparse kernels


LAYERS = {
    "1x1": nn.Conv2d(6, 5, 1),
    "1x1 strided": nn.Conv2d(6, 5, 1, stride=2, bias=False),
    "1x1 padded": nn.Conv2d(6, 5, 1, padding=1),
    "3x3": nn.Conv2d(6, 5, 3, padding=1),
    "strided": nn.Conv2d(6, 5, (3, 5), stride=(2, 3), padding=(0, 2)),
    "dilated": nn.Conv2d(6, 5, 3, padding=4, dilation=(2, 4), bias=False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_sparse_convolution_gives_what_the_dense_one_does(name):
    network = nn.Sequential(LAYERS[name])
    masks = zeroed(network)
    sparse = sparse_copy(network, masks)
    assert (sparse.replaced, sparse.left) == (("0",), ())
    batch = images(3, 6, 17, 14)
    torch.testing.assert_close(sparse.network(batch), network(batch), rtol=1e-4, atol=1e-5)
    assert isinstance(network[0], nn.Conv2d), "the network itself stays as it was"


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 5, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_sparse_linear_layer_gives_what_the_dense_one_does(shape, bias):
    network = nn.Sequential(nn.Linear(6, 5, bias=bias))
    sparse = sparse_copy(network, zeroed(network))
    torch.testing.assert_close(sparse.network(images(*shape)), network(images(*shape)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 6, 3, groups=2),
        nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(6, 6, 3, padding="same"),
        nn.ConvTranspose2d(6, 6, 3),
    ],
)
def test_layers_without_sparse_kernels_stay_dense_and_are_named(layer):
    network = nn.Sequential(nn.Conv2d(6, 6, 1), layer)
    sparse = sparse_copy(network, zeroed(network))
    assert (sparse.replaced, sparse.left) == (("0",), ("1",))
    assert type(sparse.network[1]) is type(layer)


def test_a_layer_that_loses_nothing_stays_as_it_is():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    masks = {"0.weight": torch.ones(4, 4, dtype=torch.bool), "1.weight": torch.eye(4, dtype=torch.bool)}
    assert sparse_copy(network, masks).replaced == ("1",)
    assert list(pruned(masks)) == ["1.weight"]


def test_a_sparse_layer_holds_values_and_indices_of_what_is_not_zero():
    network = nn.Sequential(nn.Linear(8, 4))
    network[0].weight.data = torch.arange(32.0).reshape(4, 8) * (torch.arange(32).reshape(4, 8) % 4 == 1)
    masks = {"0.weight": network[0].weight != 0}
    assert held_bytes(network) == 4 * (32 + 4)
    # 8 values, 8 columns, 4 + 1 beginnings of rows, and 4 biases, all of four bytes.
    assert held_bytes(sparse_copy(network, masks).network) == 4 * (8 + 8 + 5 + 4)


def test_two_of_four_is_counted_along_the_inputs_of_an_output():
    fits = torch.tensor([[1, 1, 0, 0, 0, 1, 0, 1], [0, 0, 0, 0, 1, 0, 0, 1]]).bool()
    crowded = torch.tensor([[1, 0, 0, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0]]).bool()
    uneven = torch.zeros(2, 6).bool()  # rows are not cut up into fours, though all of it could be
    convolution = fits.reshape(2, 2, 2, 2)
    assert two_of_four({"a": fits}) == two_of_four({"a": convolution}) == 1
    assert two_of_four({"a": crowded}) == two_of_four({"a": uneven}) == 0
    assert two_of_four({"a": fits, "b": crowded, "c": convolution}) == 2


# Time and memory


def test_memory_is_what_tensors_hold_at_once():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 1, 1))
    first, second, third = 4 * 4 * 100, 4 * 8 * 100, 4 * 100  # bytes for 10 x 10 pixels
    assert peak_bytes(network, images(1, 3, 10, 10)) == max(first + second, second + third)
    kept = nn.Conv2d(3, 4, 1)
    kept.forward = lambda inputs: [nn.Conv2d.forward(kept, inputs) for _ in range(3)]
    assert peak_bytes(kept, images(1, 3, 10, 10)) == 3 * first


class Counted(nn.Module):
    """Notes when it is called."""

    def __init__(self, name, calls):
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, inputs):
        self.calls.append(self.name)
        return inputs + 1


def test_variants_take_turns_and_the_first_passes_are_not_counted(monkeypatch):
    calls = []
    variants = {name: Counted(name, calls) for name in "abc"}

    def seconds(action, device):
        action()
        # The passes to warm up are slow; then each variant takes 1, 2, 3, 4, 5 times its own time.
        turn = (len(calls) - 4) // 3
        return 100.0 if turn < WARM_UP else {"a": 1, "b": 2, "c": 4}[calls[-1]] * (turn - WARM_UP + 1) / 1000

    monkeypatch.setattr(timing_module, "_seconds", seconds)
    timings = time_variants(variants, images(1, 3, 2, 2), 5)
    assert [(timing.variant, timing.low, timing.median, timing.high) for timing in timings] == [
        ("a", pytest.approx(2), pytest.approx(3), pytest.approx(4)),
        ("b", pytest.approx(4), pytest.approx(6), pytest.approx(8)),
        ("c", pytest.approx(8), pytest.approx(12), pytest.approx(16)),
    ]
    turns = ["".join(calls[start : start + 3]) for start in range(3, len(calls), 3)]
    assert turns == ["abc", "bca", "cab"] * 2 + ["abc", "bca"], (
        "each begins in its turn, after one pass for memory"
    )
    assert all(timing.activation_bytes == 48 for timing in timings)


def test_a_slow_network_takes_longer():
    slow = nn.Sequential(*(nn.Conv2d(3, 3, 7, padding=3) for _ in range(30)))
    quick, long = time_variants({"quick": nn.Conv2d(3, 3, 1), "slow": slow}, images(1, 3, 64, 64), 3)
    assert 0 < quick.median < long.median
    assert long.low <= long.median <= long.high


# What is said


def timed(variant, low, median, high):
    return Timing(variant, median, low, high, 0, 0)


@pytest.mark.parametrize(
    ("low", "median", "high", "words"),
    [
        (5.5, 6, 6.5, "Sparse kernels are faster here: they take 0.60 times as long as the dense network."),
        (20, 21, 22, "Sparse kernels are no speed-up here: they take 2.10 times as long as the dense network."),
        (8.5, 9, 9.6, "Sparse kernels make no clear difference here: they take 0.90 times as long"),
        (10.4, 10.8, 11.2, "Sparse kernels make no clear difference here: they take 1.08 times as long"),
    ],
)
def test_sparse_kernels_are_called_faster_only_where_times_are_apart(low, median, high, words):
    steady = [timed(DENSE, 9.5, 10, 10.5), timed(MASKED, 9.6, 10.2, 10.6)]
    masked, sparse = findings([*steady, timed(SPARSE, low, median, high)])
    assert masked.startswith("Masks alone save no time")
    assert "1.02 times as long" in masked
    assert sparse.startswith(words)


def test_a_busy_machine_is_said_to_be_one():
    assert findings([timed(DENSE, 9, 10, 11)]) == []
    assert findings([timed(DENSE, 8, 10, 11)]) == [
        "Times vary much from pass to pass: the machine was busy. Measure again when it is not."
    ]


def test_everything_is_measured_of_a_sparse_run(subject, tmp_path):
    threads = torch.get_num_threads()
    measured = measure(subject, CPU, repeats=4, threads=2)
    assert torch.get_num_threads() == threads
    assert (measured.run, measured.size, measured.device) == (subject.experiment.config.run_id, (20, 24), "cpu")
    assert (measured.threads, measured.repeats) == (2, 4)
    assert measured.parameters == 2864 + 16 + 32 + 16 + 5 + 3, "weights, biases and batch norm"
    # Two convolutions of 432 and 2304 weights, heads of 80 and 48, all at half of 20 x 24 pixels.
    assert (measured.parts[0].weights, measured.parts[0].macs) == (2864, 10 * 12 * 2864)
    assert measured.parts[0].nonzero == sum(int(mask.sum()) for mask in subject.masks.values())
    assert [timing.variant for timing in measured.timings] == [DENSE, MASKED, SPARSE]
    dense, masked, sparse = measured.timings
    assert dense.weight_bytes == masked.weight_bytes == 4 * (measured.parameters + 32) + 8
    assert sparse.weight_bytes < dense.weight_bytes / 2
    assert dense.activation_bytes == masked.activation_bytes == 2 * 4 * 16 * 120 < sparse.activation_bytes
    made = {found.format: found.size for found in export(subject, ["safetensors", "packed"], tmp_path)}
    assert (measured.files["as stored"], measured.files["packed"]) == (made["safetensors"], made["packed"])
    assert made["packed"] < measured.files["as stored"] > measured.files["as stored, by gzip"]
    assert measured.notes[0].startswith("Masks alone save no time")
    assert any("speed-up" in note or "faster" in note or "difference" in note for note in measured.notes)


def test_threads_are_as_before_also_when_measuring_fails(subject, monkeypatch):
    def fail(*arguments):
        raise ValueError("broken")

    monkeypatch.setattr(module, "variants_of", fail)
    threads = torch.get_num_threads()
    with pytest.raises(ValueError, match="broken"):
        measure(subject, CPU, repeats=1, threads=threads + 1)
    assert torch.get_num_threads() == threads


def test_kernels_that_torch_lacks_are_said_to_be_missing(subject, monkeypatch):
    def fail(network, masks):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(module, "sparse_copy", fail)
    variants, notes = module.variants_of(subject, CPU)
    assert list(variants) == [DENSE, MASKED]
    assert notes[0] == "Torch has no kernels for these sparse matrices on cpu: no such kernel."


def test_kernels_with_other_outputs_are_not_timed(subject, monkeypatch):
    def other(network, masks):
        made = sparse_copy(network, masks)
        made.network.trunk[0].bias = nn.Parameter(made.network.trunk[0].bias + 1)
        return made

    monkeypatch.setattr(module, "sparse_copy", other)
    variants, notes = module.variants_of(subject, CPU)
    assert list(variants) == [DENSE, MASKED]
    assert notes[0].startswith("Sparse kernels are not measured: their outputs are off by")


def test_layers_that_stay_dense_are_named(subject, monkeypatch):
    monkeypatch.setattr(
        module, "sparse_copy", lambda network, masks: replace(sparse_copy(network, masks), left=tuple("abcd"))
    )
    _, notes = module.variants_of(subject, CPU)
    assert "Pruned layers that stay dense, as torch has no sparse kernels of their type: a, b, c, ...." in notes


# The command


def test_the_command_prints_tables_and_what_they_mean(mtlbench, store):
    answer = mtlbench("measure", "snip", "--store", str(store), *TOY, "--repeats", "3")
    assert (answer.code, answer.err) == (0, "")
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in answer.out.splitlines()]
    assert ["whole", "2,864", "286", "90.01", "0.34"] in [line[:5] for line in lines]
    assert {"as stored", "as stored, by gzip", "packed"} <= {line[0] for line in lines if len(line) == 2}
    assert [line[0] for line in lines if len(line) == 6][1:] == [DENSE, MASKED, SPARSE]
    assert "2,936 parameters" in answer.out
    assert "median of 3 passes, after 3 not counted; cpu, 1 thread\n" in answer.out
    assert "\n- Masks alone save no time" in answer.out
    assert "\n- 2:4 kernels of GPUs need at most two of any four" in answer.out


def test_the_command_writes_json(mtlbench, store):
    options = ("--repeats", "1", "--format", "json", "--size", "12x16")
    answer = mtlbench("measure", "dense", "--store", str(store), *TOY, *options)
    measured = json.loads(answer.out)
    assert answer.code == 0
    assert measured["size"] == [12, 16]
    assert measured["parts"][0] == {
        "name": WHOLE,
        "weights": 2864,
        "nonzero": 2864,
        "macs": 48 * 2864,
        "sparse_macs": 48 * 2864,
    }
    assert [timing["variant"] for timing in measured["timings"]] == [DENSE]
    (first, *_) = measured["notes"]
    assert first == "Nothing is pruned in this network: there is only the dense one to measure."


def test_what_cannot_be_measured_is_refused(mtlbench, store):
    options = ("--store", str(store), *TOY)
    refused(mtlbench("measure", "dense", *options, "--device", "toaster"), "Device 'toaster'")
    refused(mtlbench("measure", "nonsense", *options), "Unknown run 'nonsense'")
    refused(mtlbench("measure", "dense", *options, "--size", "7"), "'7' is no size of an image")
    refused(mtlbench("measure", "dense", *options, "--repeats", "0"), "--repeats")
