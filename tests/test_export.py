"""Export: files that other programs read, equal to the network of the run, and never left when they are not."""

import json
import re
from dataclasses import replace
from pathlib import Path

import hypothesis
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_commands import refused
from torch import nn

from mtlprune_bench.commands import run_cli
from mtlprune_bench.commands.export import FORMATS as NAMES
from mtlprune_bench.errors import StoreError, UsageError
from mtlprune_bench.export import formats as module
from mtlprune_bench.export.formats import FORMATS, Format, export, image_size, open_subject, read_packed
from mtlprune_bench.export.packing import pack_weights, unpack_weights
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.store import Store
from mtlprune_bench.training.checkpoint import load_masks

PLUGIN = str(Path(__file__).parent / "toy_plugin.py")
TOY = ("--plugin", PLUGIN)
EXACT = ("safetensors", "pytorch", "packed")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return a store with a sparse run, a dense one and one of double precision."""
    folder = tmp_path_factory.mktemp("store")
    base = (
        *("run", *TOY, "--dataset", "toy", "--sparsity", "0.9", "--store", str(folder)),
        *("--set", "train.steps=2", "--set", "finetune.steps=2"),
    )
    assert run_cli([*base, "--method", "snip,dense"]) == 0
    assert run_cli([*base, "--method", "random", "--precision", "fp64"]) == 0
    return folder


@pytest.fixture(scope="module")
def registry():
    return load_registry([PLUGIN])


@pytest.fixture(scope="module")
def subject(store, registry):
    return open_subject(Store(store).find("snip"), registry)


@pytest.fixture(scope="module")
def files(subject, tmp_path_factory):
    """Return what was exported of the sparse run, by format."""
    return {made.format: made for made in export(subject, list(FORMATS), tmp_path_factory.mktemp("files"))}


# Files


def test_every_format_gives_the_outputs_of_the_network(files, subject):
    assert list(files) == ["safetensors", "pytorch", "packed", "onnx"]
    assert all(files[name].difference == 0 for name in EXACT)
    assert 0 <= files["onnx"].difference <= 1e-4
    for made in files.values():
        assert made.size == made.path.stat().st_size
        assert made.path.name.startswith(subject.experiment.config.run_id)


def test_safetensors_hold_the_state_dict_with_zeros_and_say_where_they_are_from(files, subject, store):
    path = files["safetensors"].path
    tensors = safetensors.torch.load_file(path)
    state = subject.network.state_dict()
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name]) for name in state)
    masks = load_masks(Store(store).find("snip") / "masks.safetensors")
    removed = sum(int((tensors[name][~mask] == 0).sum()) for name, mask in masks.items())
    assert removed == sum(int((~mask).sum()) for mask in masks.values()) > 2000
    with safetensors.safe_open(path, framework="np") as file:
        assert subject.experiment.config.run_id in file.metadata()["mtlprune-bench"]


def test_the_state_dict_is_loaded_without_executing_anything(files, subject):
    tensors = torch.load(files["pytorch"].path, weights_only=True)
    network = subject.experiment.build_model(torch.device("cpu"), "another start").eval()
    network.load_state_dict(tensors)
    with torch.inference_mode():
        expected, found = subject.network(subject.images), network(subject.images)
    assert all(torch.equal(found[task], expected[task]) for task in ("segmentation", "normals"))


def test_what_pytorch_reads_back_is_read_as_tensors_only(subject, tmp_path, monkeypatch):
    asked = []
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: asked.append(kwargs) or real(*args, **kwargs))
    assert [made.format for made in export(subject, ["pytorch"], tmp_path)] == ["pytorch"]
    assert [arguments["weights_only"] for arguments in asked] == [True]


def test_the_example_of_the_documents_reads_a_packed_file(files, subject, tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "RUN.packed.safetensors").write_bytes(files["packed"].path.read_bytes())
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code, found)
    expected = subject.network.state_dict()
    assert found["state"].keys() == expected.keys()
    assert all(found["state"][name].tobytes() == expected[name].numpy().tobytes() for name in expected)


def test_a_packed_file_is_as_small_as_bits_and_kept_values(files, subject):
    packed = safetensors.torch.load_file(files["packed"].path)
    weights = sum(mask.numel() for mask in subject.masks.values())
    kept = sum(int(mask.sum()) for mask in subject.masks.values())
    assert kept == round(0.1 * weights)
    held = sum(tensor.nbytes for name, tensor in packed.items() if name.startswith(("mask.", "kept.")))
    assert held <= 4 * kept + weights / 8 + len(subject.masks)
    assert files["packed"].size < files["safetensors"].size / 2


def test_onnx_takes_any_number_of_images_and_names_its_tasks(files, subject):
    session = onnxruntime.InferenceSession(files["onnx"].path.read_bytes(), providers=["CPUExecutionProvider"])
    images = torch.randn(5, *subject.images.shape[1:], generator=torch.Generator().manual_seed(0))
    names = [output.name for output in session.get_outputs()]
    assert names == ["segmentation", "normals"]
    found = dict(zip(names, session.run(names, {"images": images.numpy()}), strict=True))
    with torch.inference_mode():
        expected = subject.network(images)
    for task, output in expected.items():
        np.testing.assert_allclose(found[task], output.numpy(), rtol=1e-3, atol=1e-5)


def test_onnx_keeps_the_zeros_in_one_checked_file(files, subject):
    onnx.checker.check_model(str(files["onnx"].path), full_check=True)
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(files["onnx"].path).graph.initializer]
    removed = sum(int((~mask).sum()) for mask in subject.masks.values())
    assert sum(int((array == 0).sum()) for array in arrays if array.ndim == 4) >= removed > 2000
    assert [path.suffix for path in files["onnx"].path.parent.glob("*.onnx*")] == [".onnx"]


def test_onnx_takes_images_of_the_size_asked_for(store, registry, tmp_path):
    subject = open_subject(Store(store).find("snip"), registry, "32x40")
    (made,) = export(subject, ["onnx"], tmp_path)
    (images,) = onnxruntime.InferenceSession(made.path.read_bytes()).get_inputs()
    assert images.shape[1:] == [3, 32, 40]
    assert isinstance(images.shape[0], str), "the number of images is free"


def test_a_dense_run_is_exported_too(store, registry, tmp_path):
    subject = open_subject(Store(store).find("dense"), registry)
    made = {made.format: made for made in export(subject, EXACT, tmp_path)}
    assert subject.masks == {}
    assert all(found.difference == 0 for found in made.values())
    assert set(safetensors.torch.load_file(made["packed"].path)) == {
        f"dense.{name}" for name in subject.network.state_dict()
    }


def test_double_precision_stays_double_and_is_refused_by_onnx(store, registry, tmp_path):
    subject = open_subject(Store(store).find("random"), registry)
    made = list(export(subject, EXACT, tmp_path))
    assert all(found.difference == 0 for found in made)
    assert read_packed(made[2].path)["trunk.0.weight"].dtype == torch.float64
    with pytest.raises(UsageError, match="fp64 weights, which onnxruntime does not compute with"):
        list(export(subject, ["onnx"], tmp_path))


# What is checked


def damaged(subject, path):
    state = subject.state()
    state["trunk.0.weight"][0, 0, 0, 0] += 1
    torch.save(state, path)


@pytest.mark.parametrize("write", [damaged, lambda subject, path: torch.save({}, path)])
def test_a_file_that_holds_other_weights_is_not_left(subject, tmp_path, monkeypatch, write):
    monkeypatch.setitem(FORMATS, "pytorch", replace(FORMATS["pytorch"], write=write))
    with pytest.raises(StoreError, match="was not read back as it was written"):
        list(export(subject, ["pytorch"], tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("off", "tolerance", "good"), [(9e-5, 1e-4, True), (2e-4, 1e-4, False), (1e-6, 0.0, False)]
)
def test_outputs_may_differ_by_the_tolerance_and_no_more(subject, tmp_path, monkeypatch, off, tolerance, good):
    def outputs(subject, path, images):
        found = {task: output.clone() for task, output in subject.network(images).items()}
        found["normals"][0, 0, 0, 0] += off * found["normals"].abs().max()
        return found

    form = Format(".pt", FORMATS["pytorch"].write, outputs, tolerance, images=2)
    monkeypatch.setitem(FORMATS, "pytorch", form)
    if good:
        (made,) = export(subject, ["pytorch"], tmp_path)
        assert made.difference == pytest.approx(off, rel=0.05)
        return
    with pytest.raises(StoreError, match="differs in 'normals' by"):
        list(export(subject, ["pytorch"], tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_no_numbers_are_refused(subject, tmp_path, monkeypatch):
    nothing = lambda subject, path, images: {  # noqa: E731
        task: output * float("nan") for task, output in subject.network(images).items()
    }
    monkeypatch.setitem(FORMATS, "onnx", Format(".onnx", FORMATS["pytorch"].write, nothing, tolerance=1e-4))
    with pytest.raises(StoreError, match="differs in 'segmentation' by nan"):
        list(export(subject, ["onnx"], tmp_path))


def test_a_network_that_torch_cannot_write_as_onnx_is_said_to_be_one(subject, tmp_path):
    class Branching(nn.Module):
        def forward(self, images):
            factor = 1 if images.sum().item() > 0 else 2
            return dict.fromkeys(("segmentation", "normals"), images * factor)

    with pytest.raises(UsageError, match=r"torch cannot write model 'toy-net' as ONNX: .* Take another format"):
        list(export(replace(subject, network=Branching()), ["onnx"], tmp_path))
    assert list(tmp_path.iterdir()) == []


# Packing


def test_packing_keeps_what_a_half_that_is_no_number_says():
    values = torch.tensor([0x7C01, 0x3C00], dtype=torch.int16)
    packed = pack_weights({"a": values.view(torch.float16)}, {"a": torch.tensor([True, True])})
    assert torch.equal(unpack_weights(packed)["a"].view(torch.int16), values)


@hypothesis.settings(deadline=None)
@hypothesis.given(
    data=st.data(),
    shape=hnp.array_shapes(max_dims=4, max_side=6, min_side=0),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_packing_is_undone_to_the_bit(data, shape, dtype):
    # Any bits: also those of infinities, zeros with a sign, and what is not a number.
    values = data.draw(hnp.arrays(np.dtype(f"u{np.dtype(dtype).itemsize}"), shape)).view(dtype)
    mask = data.draw(hnp.arrays(bool, shape))
    tensors = {"a.b": torch.from_numpy(np.where(mask, values, dtype(0))), "mask.c": torch.from_numpy(values)}
    packed = pack_weights(tensors, {"a.b": torch.from_numpy(mask)})
    found = unpack_weights(packed)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes()
    assert packed["mask.a.b"].numel() == -(-mask.size // 8)
    assert packed["kept.a.b"].numel() == mask.sum()


@pytest.mark.parametrize("missing", ["mask.w", "kept.w"])
def test_a_packed_weight_that_lacks_a_part_is_refused(missing):
    packed = pack_weights({"w": torch.ones(3)}, {"w": torch.tensor([True, False, True])})
    del packed[missing]
    with pytest.raises(UsageError, match=r"'shape\.w' is not a packed weight"):
        unpack_weights(packed)


def test_a_packed_weight_with_too_few_values_is_refused():
    packed = pack_weights({"w": torch.ones(3)}, {"w": torch.tensor([True, True, True])})
    with pytest.raises(UsageError, match=r"'shape\.w' is not a packed weight"):
        unpack_weights({**packed, "kept.w": torch.ones(2)})


def test_a_file_that_is_no_packed_one_is_refused(tmp_path):
    (tmp_path / "text").write_text("nothing")
    with pytest.raises(UsageError, match="cannot be read"):
        read_packed(tmp_path / "text")


# The command


def test_the_command_knows_the_formats():
    assert tuple(FORMATS) == NAMES


def test_all_formats_are_written_into_the_folder_of_the_run_and_listed(mtlbench, store):
    answer = mtlbench("export", "snip", "--store", str(store), *TOY)
    folder = Store(store).find("snip") / "export"
    assert (answer.code, answer.err) == (0, "")
    assert str(folder) in answer.out
    suffixes = [form.suffix for form in FORMATS.values()]
    assert sorted(path.name for path in folder.iterdir()) == sorted(folder.parent.name + end for end in suffixes)
    for path in folder.iterdir():
        (line,) = (line for line in answer.out.splitlines() if f" {path.name} " in line)
        assert f" {path.stat().st_size / 1e6:.3f} " in line
        assert ("of the largest (allowed: 0.0001)" in line) == (path.suffix == ".onnx")
        assert (" equal " in line) == (path.suffix != ".onnx")


def test_formats_and_folder_can_be_chosen(mtlbench, store, tmp_path):
    options = (
        "--format",
        "packed",
        "--format",
        "pytorch",
        "--format",
        "packed",
        "--output",
        str(tmp_path / "here"),
    )
    answer = mtlbench("export", "dense", "--store", str(store), *TOY, *options)
    assert answer.code == 0
    assert sorted(path.suffixes[-1] for path in (tmp_path / "here").iterdir()) == [".pt", ".safetensors"]


def test_without_its_packages_onnx_is_left_out_and_that_is_said(mtlbench, store, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "missing_packages", lambda: ["onnxscript"])
    options = ("--store", str(store), *TOY, "--output", str(tmp_path / "here"))
    answer = mtlbench("export", "snip", *options)
    assert answer.code == 0
    assert answer.err == "No ONNX: onnxscript not installed. pip install 'mtlprune-bench[onnx]'\n"
    assert len(list((tmp_path / "here").iterdir())) == 3
    refused(mtlbench("export", "snip", *options, "--format", "onnx"), "onnxscript", "mtlprune-bench[onnx]")


def test_missing_packages_are_found_missing(monkeypatch):
    assert module.missing_packages() == []
    monkeypatch.setattr(module, "NEEDED", ("onnx", "there_is_no_such_package"))
    assert module.missing_packages() == ["there_is_no_such_package"]


@pytest.mark.parametrize("size", ["32", "0x32", "32x", "x", "-1x4", "3x4x5", "2.5x3"])
def test_a_size_that_is_none_is_refused(mtlbench, store, size):
    refused(mtlbench("export", "snip", "--store", str(store), *TOY, "--size", size), f"'{size}'", "HEIGHTxWIDTH")


def test_a_size_is_height_by_width():
    assert image_size("288x384") == (288, 384)


def test_an_unknown_run_is_refused(mtlbench, store):
    refused(mtlbench("export", "nonsense", "--store", str(store), *TOY), "Unknown run 'nonsense'")


def test_a_run_without_its_request_is_refused(mtlbench, store, tmp_path):
    folder = tmp_path / "old" / "some-run"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({}))
    refused(mtlbench("export", "some-run", "--store", str(folder.parent)), "no request.json", "once more")


def test_equal_runs_are_exported_to_equal_files(subject, tmp_path):
    # Not those of torch, which names the archive after the temporary file.
    for folder in ("a", "b"):
        list(export(subject, ["safetensors", "packed"], tmp_path / folder))
    paths = list((tmp_path / "a").iterdir())
    assert len(paths) == 2
    assert all(path.read_bytes() == (tmp_path / "b" / path.name).read_bytes() for path in paths)
