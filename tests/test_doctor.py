"""`mtlbench doctor`: what it says of a machine that is ready, and of one that is not."""

import json
import shutil
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement
from test_commands import write

from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.runs import doctor
from mtlprune_bench.testing import smoke as smoke_module
from mtlprune_bench.testing.smoke import smoke


@pytest.fixture(scope="module")
def registry():
    return load_registry()


def verdicts(found):
    return {each.subject: each.verdict for each in found}


def test_a_machine_that_is_ready(mtlbench, tmp_path):
    answer = mtlbench("doctor")
    assert answer.code == 0, answer
    assert "0 problems." in answer.out
    for words in ("Python", "torch", "built in", "stands in", "GiB free", "2 steps", "sparsity 0.5"):
        assert words in answer.out
    assert list(tmp_path.iterdir()) == [], "nothing is left behind, and no store is made"


def test_as_json_without_the_run(mtlbench):
    answer = mtlbench("doctor", "--json", "--no-run")
    found = json.loads(answer.out)
    assert answer.code == 0
    assert {each["area"] for each in found} == {"versions", "machine", "plugins", "data", "disk"}
    assert all(each["verdict"] in ("ok", "warning", "problem") for each in found)


def test_a_problem_is_the_exit_code_and_says_what_to_do(mtlbench, tmp_path):
    bad = write(tmp_path / "broken.py", "raise RuntimeError('out of order')\n")
    answer = mtlbench("doctor", "--no-run", "--plugin", bad)
    assert answer.code == 1
    assert "RuntimeError: out of order" in answer.out
    assert "--block broken" in answer.out


def test_plugins_that_contradict_each_other_leave_the_rest(mtlbench, tmp_path):
    twice = write(
        tmp_path / "twice.py",
        "from mtlprune_bench import Method, hookimpl, magnitude, once\n\n\n@hookimpl\n"
        "def register_methods(register):\n    register(Method(name='snip', score=magnitude(), schedule=once()))\n",
    )
    answer = mtlbench("doctor", "--json", "--plugin", twice)
    found = {each["subject"]: each for each in json.loads(answer.out)}
    assert answer.code == 1
    assert "'snip'" in found["all"]["found"]
    assert found["store"]["verdict"] == "ok"


@pytest.mark.parametrize(
    ("wanted", "extra", "verdict", "words", "advice"),
    [
        ("torch>=2.0", "", "ok", metadata.version("torch"), ""),
        ("torch>=99", "", "problem", "but >=99 is needed", "pip install 'torch>=99'"),
        ("no-such-package>=1", "", "problem", "not installed", "pip install 'no-such-package>=1'"),
        ("no-such-package>=1", "ray", "ok", "only for ray", "pip install 'mtlprune-bench[ray]'"),
        ("torch>=99", "ray", "problem", "but >=99 is needed", "pip install 'mtlprune-bench[ray]'"),
    ],
)
def test_packages_are_held_to_the_oldest_that_will_do(wanted, extra, verdict, words, advice):
    found = doctor.package(Requirement(wanted), extra)
    assert (found.verdict, found.advice) == (verdict, advice)
    assert words in found.found


def test_every_requirement_of_the_package_is_looked_at():
    subjects = {each.subject for each in doctor.versions()}
    required = [Requirement(line) for line in metadata.requires("mtlprune-bench")]
    assert {each.name for each in required if each.marker is None} <= subjects
    assert "pytest" not in subjects


@pytest.mark.parametrize(
    ("driver", "built", "verdict", "words"),
    [
        (None, "12.8", "ok", "none"),
        ("/usr/bin/nvidia-smi", None, "warning", "without CUDA"),
        ("/usr/bin/nvidia-smi", "12.8", "warning", "none for CUDA 12.8"),
    ],
)
def test_why_there_is_no_gpu(monkeypatch, driver, built, verdict, words):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(shutil, "which", lambda name: driver)
    (found,) = doctor.gpus()
    assert found.verdict == verdict
    assert words in found.found
    assert bool(found.advice) == (verdict != "ok")


def test_gpus_are_listed_with_their_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    facts = SimpleNamespace(name="Large", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    assert [(each.subject, each.found) for each in doctor.gpus()] == [
        ("cuda:0", "Large, 80.0 GiB"),
        ("cuda:1", "Large, 80.0 GiB"),
    ]


def test_files_of_datasets_are_found_or_said_to_be_damaged(registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert set(verdicts(doctor.data(registry)).values()) == {"ok"}
    (tmp_path / "data" / "nyuv2").mkdir(parents=True)
    monkeypatch.setenv("MTLBENCH_DATA", str(tmp_path / "data"))
    for name in ("train", "val"):
        for kind in ("image", "label", "depth", "normal"):
            (tmp_path / "data" / "nyuv2" / name / kind).mkdir(parents=True)
    found = {each.subject: each for each in doctor.data(registry)}
    assert "layout mtan in" in found["nyuv2-13"].found
    shutil.rmtree(tmp_path / "data" / "nyuv2" / "val")
    found = {each.subject: each for each in doctor.data(registry)}
    assert found["nyuv2-13"].verdict == "problem"
    assert "val/" in found["nyuv2-13"].found
    monkeypatch.setenv("MTLBENCH_DATA", str(tmp_path / "nowhere"))
    assert verdicts(doctor.data(registry))["MTLBENCH_DATA"] == "problem"


def test_a_full_disk_and_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "free_bytes", lambda folder: 2**20)
    assert verdicts(doctor.places(tmp_path)) == {"store": "warning", "cache": "warning"}
    monkeypatch.undo()
    found = doctor.place("store", tmp_path / "deep" / "store", "")
    assert found.verdict == "ok"
    assert not (tmp_path / "deep").exists()

    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    found = doctor.place("store", tmp_path, "")
    assert found.verdict == "problem"
    assert "Permission denied" in found.found
    assert "--store" in found.advice


def test_a_store_of_a_later_version_is_a_problem(tmp_path):
    (tmp_path / "store.json").write_text('{"version": 99}')
    found = {each.subject: each for each in doctor.places(tmp_path)}
    assert found["store"].verdict == "problem"
    assert "format 99" in found["store"].found


@pytest.mark.parametrize("way", ["raises", "fails", "misses"])
def test_a_run_that_does_not_end_well_is_a_problem(registry, tmp_path, monkeypatch, way):
    row = {"status": "finished", "reason": "", "metric": "sparsity", "component": "whole", "value": 0.4}

    def execute(*arguments):
        if way == "raises":
            raise RuntimeError("no kernel image")
        return [row | ({"status": "failed", "reason": "no kernel image"} if way == "fails" else {})]

    monkeypatch.setattr(smoke_module, "execute", execute)
    found = smoke(registry, tmp_path)
    assert found.verdict == "problem"
    assert ("0.5 was asked for" if way == "misses" else "no kernel image") in found.found
    assert ("methods", smoke_module.SMOKE) not in registry.entries, "the registry is as it was"
