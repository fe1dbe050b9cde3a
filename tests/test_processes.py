"""Several processes: the numbers of one, whatever a method does; and an end for all where one ends badly."""

import copy
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import active_children
from pathlib import Path

import psutil
import pytest
import torch
import torchmetrics
from children import workers_of
from torch import nn
from toys import batches

from mtlprune_bench import STANDARD, Labels, Metric
from mtlprune_bench.commands import run_cli
from mtlprune_bench.errors import DivergedError, MtlbenchError, StoreError, UsageError
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.processes import ALONE, Processes, present
from mtlprune_bench.pruning.masks import sparsity
from mtlprune_bench.runs.config import Engine
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.run import Run
from mtlprune_bench.runs.suite import prepare_all, run_all
from mtlprune_bench.store import COSTS, Store, read_history
from mtlprune_bench.training.checkpoint import load_masks, load_tensors
from mtlprune_bench.training.evaluate import evaluate
from mtlprune_bench.training.launch import check_devices, launch

PLUGIN = str(Path(__file__).parent / "toy_plugin.py")
CPU = torch.device("cpu")

METHODS = {
    "snip": {"score": {"batches": 1}},
    "disparse-static": {"score": {"batches": 3}},
    "disparse-dynamic": {},
    "rigl": {},
    "grasp": {},
    "adapmtl": {"s_init": -6},
    "toy-finetune": {},
}
"""What is compared, with settings by which a few steps show all of it: batches to share out, moving thresholds."""


def request_of(method, **train):
    recipe = {"precision": "fp64", "batch": 5, "steps": 16}
    return Request(
        method=method,
        dataset="toy",
        # Not so high that a channel is left without a weight: then a last digit decides which way a ReLU goes.
        sparsity=0.5,
        seed=0,
        settings={
            "method": METHODS[method],
            "train": recipe | train,
            "finetune": {"precision": "fp64", "batch": 5},
            "engine": {"device": "cpu"},
            "runner": {"workers": 1},
        },
    )


def all_rows(folder, device):
    """Return the rows of every method, by its name, made by all processes in the store `folder`."""
    registry = load_registry([PLUGIN])
    requests = [request_of(method) for method in METHODS]
    rows = {}
    for experiment in prepare_all(requests, registry, lambda text: None):
        rows[experiment.config.method.name] = Run(
            experiment, Store(folder), registry, Engine(device=device)
        ).rows()
    return rows


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return what one process makes, and two that share out batches of five images, with the folders."""
    folders = [tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")]
    alone = everything(folders[0], "cpu")
    return (folders[0], *alone), (folders[1], *launch(functools.partial(everything, folders[1]), CPU, 2))


def everything(folder, device):
    """Return the rows of all runs, the tensors of single layers, and what travelled."""
    return all_rows(folder, device), whole_batches(), travelled()


@pytest.fixture(scope="module")
def made(results):
    return [(folder, rows) for folder, rows, _, _ in results]


def folders_of(made, method):
    return [next(store.glob(f"{method}-toy-*")) for store, _ in made]


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_end_with_the_masks_of_one(made, method):
    one, two = (load_masks(folder / "masks.safetensors") for folder in folders_of(made, method))
    assert one.keys() == two.keys()
    assert 0 < sparsity(one) < 1
    for name, mask in one.items():
        assert torch.equal(mask, two[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_have_the_losses_and_weights_of_one(made, method):
    one, two = folders_of(made, method)
    histories = [list(read_history(folder / "history.jsonl")) for folder in (one, two)]
    assert [entry["step"] for entry in histories[0]] == [entry["step"] for entry in histories[1]]
    for first, second in zip(*histories, strict=True):
        assert second["losses"] == pytest.approx(first["losses"], rel=0, abs=1e-9)
    weights = [load_tensors(folder / "weights.safetensors")[0] for folder in (one, two)]
    assert weights[0]["trunk.0.weight"].dtype == torch.float64
    # Running means and variances too; Adam blows up the last digits of gradients that are almost zero.
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_have_the_rows_of_one(made, method):
    (_, one), (_, two) = made
    for first, second in zip(one[method], two[method], strict=True):
        if first["metric"] not in COSTS:
            assert second == {**first, "value": pytest.approx(first["value"], rel=0, abs=1e-6)}


class Mixed(nn.Module):
    """Layers that look at more than one image, or draw: a second number for each, in two of three dimensions."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm, self.plain = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm1d(4)
        self.plain.momentum, self.plain.affine = None, False
        self.dropout, self.channels = nn.Dropout(0.3), nn.Dropout2d(0.5)
        self.folded, self.inplace = (
            nn.BatchNorm1d(6, affine=False, track_running_stats=False),
            nn.Dropout(0.2, True),
        )

    def forward(self, images):
        features = self.channels(self.dropout(self.norm(self.convolution(images))))
        direct = torch.batch_norm(features, None, None, None, None, True, 0.1, 1e-5, False)
        points = self.plain(features.flatten(2))
        rows = self.inplace(self.folded(features.flatten(0, 1).flatten(1)[:, :6]).clone())
        return {"a": features + direct, "b": points.square(), "c": rows.view(len(images), -1)}


def whole_batches():
    """Return predictions, summed gradients and statistics of a network, in fp64 and with bf16."""
    found = []
    for dtype in (torch.float64, torch.bfloat16):
        torch.manual_seed(0)
        model = Mixed()
        images = torch.randn(7, 3, 6, 6) + 3
        if dtype == torch.float64:
            model, images = model.double(), images.double()

        def network(images, model=model, half=dtype == torch.bfloat16):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                return {name: output.double() for name, output in model(images).items()}

        for seed in range(2):
            torch.manual_seed(seed)
            outputs = present().forward(network, images)
            torch.stack([output.sin().sum() ** 2 for output in outputs.values()]).sum().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        present().add_up(gradients)
        found.append(
            {
                **{name: output.detach() for name, output in outputs.items()},
                **{f"gradient {number}": gradient for number, gradient in enumerate(gradients)},
                **dict(model.named_buffers()),
                "next draw": torch.rand(1),
            }
        )
    return found


class Images(torchmetrics.Metric):
    """The number of images, which torchmetrics adds up over processes unless told otherwise."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction, target, mask):
        self.images += len(mask)

    def compute(self):
        return self.images


class Counted:
    """An objective of one task that predicts its images."""

    tasks, weights, labels, protocol = {"a": None}, {"a": 1.0}, {"a": Labels("a")}, STANDARD

    def losses(self, outputs, batch):
        return {"a": batch.images.sum()}

    def predictions(self, outputs, size):
        return {"a": outputs}


COUNT = Metric(
    name="count",
    task="a",
    description="images",
    state=lambda labels, protocol: Images(),
    read=lambda state: state.compute(),
    higher_is_better=True,
)


def travelled():
    """Return what comes of objects, masks and sums that differ between processes, for each of them."""
    mask = torch.tensor([[True, False]]) ^ bool(present().index)
    sums = [torch.full((2,), 1.0 + present().index), torch.full((1, 1), 10.0)]
    present().add_up(sums)
    index = present().index
    seen = evaluate(nn.Identity(), Counted(), {"a": (COUNT,)}, batches("a", 3), CPU)[-1].value
    own = [
        seen,
        present().from_first(lambda: index),
        present().agree({"m": mask})["m"].tolist(),
        [s.tolist() for s in sums],
    ]
    if present().count == 1:
        return [own]
    gathered = [None, None]
    torch.distributed.all_gather_object(gathered, own)
    return gathered


def test_every_layer_sees_the_whole_batch_of_seven(results):
    (double_alone, half_alone), (double, half) = (layers for _, _, layers, _ in results)
    torch.testing.assert_close(double, double_alone, rtol=1e-10, atol=1e-10)
    # With 8 bits a number, gradients that batch norm cancels are nothing but rounding.
    for name in half_alone.keys() - {f"gradient {number}" for number in range(len(half_alone))}:
        scale = half_alone[name].double().abs().max()
        assert (half[name] - half_alone[name]).double().abs().max() <= 0.03 * scale, name


def test_both_processes_have_what_the_first_made_and_the_sums(results):
    assert results[0][3] == [[6, 0, [[True, False]], [[1, 1], [[10]]]]]
    assert results[1][3] == [[6, 0, [[True, False]], [[3, 3], [[20]]]]] * 2


def test_images_are_shared_out_without_gap_or_overlap():
    for count in range(1, 6):
        for length in range(count, 13):
            shares = [Processes(index, count).share(length) for index in range(count)]
            assert [place for share in shares for place in range(length)[share]] == list(range(length))
            sizes = [share.stop - share.start for share in shares]
            assert max(sizes) - min(sizes) <= 1
    with pytest.raises(UsageError, match=r"2 images cannot be shared out over 3 devices\. Lower --devices"):
        Processes(0, 3).share(2)


def test_alone_nothing_travels():
    masks, tensor = {"a": torch.tensor([True])}, torch.ones(2)
    assert present() == ALONE
    assert ALONE.agree(masks) == masks
    ALONE.add_up([tensor])
    assert tensor.tolist() == [1, 1]
    assert ALONE.from_first(lambda: tensor) is tensor
    assert ALONE.forward(lambda images: {"a": images}, tensor)["a"] is tensor


def second_fails(device):
    """Fail in the second process, while the first one waits for it."""
    if present().index == 1:
        raise DivergedError("no more")
    return present().from_first(lambda: 1) + float(torch.distributed.barrier() or 0)


def test_what_the_first_to_fail_raised_is_raised_with_its_traceback():
    with pytest.raises(DivergedError, match="no more") as caught:
        launch(second_fails, CPU, 2)
    assert str(caught.value) == "no more"
    assert "in second_fails" in caught.value.__notes__[0]
    assert active_children() == []


def answers(folder, *contents):
    import pickle

    for index, content in enumerate(contents):
        (folder / f"answer-{index}").write_bytes(pickle.dumps(content))


@pytest.mark.parametrize(
    ("codes", "contents", "expected"),
    [
        ([0, 0], [(1.0, None, "rows"), (0.5, None, None)], "rows"),
        ([1, 1], [(2.0, RuntimeError("broken pipe"), None), (1.0, StoreError("disk full"), None)], StoreError),
        ([1, -9], [(2.0, RuntimeError("broken pipe"), None)], "killed by signal 9 .SIGKILL.; perhaps memory"),
        ([None, 3], [], "One of its 2 processes ended with exit code 3"),
    ],
)
def test_the_cause_is_told_from_what_it_brought_about(tmp_path, codes, contents, expected):
    from mtlprune_bench.training.launch import _answer

    answers(tmp_path, *contents)
    if expected == "rows":
        assert _answer(tmp_path, codes) == "rows"
    elif expected is StoreError:
        with pytest.raises(StoreError, match="disk full"):
            _answer(tmp_path, codes)
    else:
        with pytest.raises(MtlbenchError, match=expected):
            _answer(tmp_path, codes)


def on_devices(request, count):
    """Return `request` on so many devices, with a checkpoint after every step."""
    settings = copy.deepcopy(dict(request.settings))
    settings["engine"] |= {"devices": count, "checkpoint_seconds": 0.0}
    return Request(method=request.method, dataset="toy", sparsity=0.5, seed=0, settings=settings)


def kill_one_after(folder, steps):
    """Kill the second process of the run in `folder` once its history has so many steps."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        history = next(iter(folder.glob("*/history.jsonl")), None)
        if history is not None and len(history.read_bytes().splitlines()) >= steps:
            active_children()[-1].kill()
            return
        time.sleep(0.005)


def test_a_run_whose_process_was_killed_goes_on_with_another_number_of_processes(tmp_path):
    registry = load_registry([PLUGIN])
    asked = request_of("rigl", steps=150, update_every=5)
    killer = threading.Thread(target=kill_one_after, args=(tmp_path / "killed", 20))
    killer.start()
    (outcome,) = run_all([on_devices(asked, 2)], Store(tmp_path / "killed"), registry, lambda text: None)
    killer.join()
    assert outcome.status == "failed"
    assert "One of its 2 processes was killed by signal 9 (SIGKILL)" in outcome.reason
    assert active_children() == []
    (outcome,) = run_all([on_devices(asked, 1)], Store(tmp_path / "killed"), registry, lambda text: None)
    assert outcome.good
    (whole,) = run_all([on_devices(asked, 1)], Store(tmp_path / "whole"), registry, lambda text: None)
    killed, alone = (tmp_path / name / whole.name for name in ("killed", "whole"))
    history = (killed / "history.jsonl").read_text().splitlines()
    assert 150 <= len(history) <= 152  # it went on where it had stopped
    masks = load_masks(alone / "masks.safetensors")
    assert all(torch.equal(mask, masks[name]) for name, mask in load_masks(killed / "masks.safetensors").items())
    for entry, other in zip(*(read_history(folder / "history.jsonl") for folder in (killed, alone)), strict=True):
        assert entry["losses"] == pytest.approx(other["losses"], rel=0, abs=1e-6)


COMMAND = [
    *(sys.executable, "-c", "from mtlprune_bench.commands import main; main()", "run", "--plugin", PLUGIN),
    *("--method", "snip", "--dataset", "toy", "--devices", "2", "--device", "cpu", "--set", "train.steps=100000"),
]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_their_parent(tmp_path, how):
    parent = subprocess.Popen(
        [*COMMAND, "--store", str(tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not any(tmp_path.glob("*/history.jsonl")):
        time.sleep(0.05)
    workers = workers_of(psutil.Process(parent.pid))
    assert len(workers) == 2
    os.kill(parent.pid, how)
    errors = parent.communicate(timeout=30)[1]
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    assert "Traceback" not in errors


def test_more_devices_than_there_are_is_said_before_anything_runs(tmp_path, monkeypatch, capsys):
    found = len(os.sched_getaffinity(0))
    options = ["--method", "snip", "--dataset", "toy", "--device", "cpu", "--store", str(tmp_path / "store")]
    assert run_cli(["run", "--plugin", PLUGIN, *options, "--devices", str(found + 1)]) == 2
    assert f"--devices {found + 1}: on the CPU each takes a processor" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    check_devices(CPU, found)
    for there, device, count, words in (
        (1, "cuda:0", 4, r"--devices 4: 1 CUDA device was found; ask for as many at most\."),
        (4, "cuda:2", 3, r"--devices 3 from cuda:2 on: 4 CUDA devices were found"),
    ):
        monkeypatch.setattr(torch.cuda, "device_count", lambda there=there: there)
        with pytest.raises(UsageError, match=words):
            check_devices(torch.device(device), count)
    check_devices(torch.device("cuda:2"), 2)


def test_a_batch_smaller_than_the_devices_is_said_before_anything_runs(tmp_path):
    registry = load_registry([PLUGIN])
    with pytest.raises(UsageError, match="1 images cannot be shared out over 2 devices"):
        list(
            run_all(
                [on_devices(request_of("snip", accumulate=3), 2)], Store(tmp_path), registry, lambda text: None
            )
        )
    assert not list(tmp_path.glob("*"))
    with pytest.raises(UsageError, match="devices of the engine is 0; it must be 1 or more"):
        Engine(devices=0)
