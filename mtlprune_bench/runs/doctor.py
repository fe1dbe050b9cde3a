"""Whether this machine is ready for runs: versions, devices, plugins, data, disk; and what to do if not."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from packaging.requirements import Requirement

from mtlprune_bench.adapters import Dataset
from mtlprune_bench.data.find import find
from mtlprune_bench.data.inventory import free_bytes
from mtlprune_bench.data.locate import searched
from mtlprune_bench.errors import MtlbenchError
from mtlprune_bench.host.registry import BUILT_IN, PLUGINS, Registry
from mtlprune_bench.runs.environment import DISTRIBUTION
from mtlprune_bench.runs.opening import cache_folder
from mtlprune_bench.store import Store

Verdict = Literal["ok", "warning", "problem"]

GIB = 2**30
MEMORY = 4 * GIB
"""The least memory with which small networks train; with less, the system may end a run."""
FREE = {"store": 2 * GIB, "cache": GIB}
"""Free disk that a run may need: a network of 68 million weights has checkpoints of 0.8 GB, of which two are there
while the second is written; the cache holds generated scenes and prepared images."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `found` is what is there, `advice` what to do, "" for nothing."""

    area: str
    subject: str
    verdict: Verdict
    found: str
    advice: str = ""


def findings(registry: Registry, store: Path) -> Iterator[Finding]:
    """Yield what is found, area by area, as soon as it is."""
    yield from versions()
    yield from machine()
    yield from plugins(registry)
    yield from data(registry)
    yield from places(store)


def versions() -> Iterator[Finding]:
    """Yield the version of Python, and of each package that is required, against the oldest that will do."""
    yield Finding("versions", "Python", "ok", platform.python_version())
    wanted = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    for requirement in wanted:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield package(requirement)
    for extra in sorted(set(metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or ()) - {"dev", "docs"}):
        for requirement in wanted:
            if requirement.marker and requirement.marker.evaluate({"extra": extra}) and not _always(requirement):
                yield package(requirement, extra)


def _always(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def package(requirement: Requirement, extra: str = "") -> Finding:
    """Return whether a required package is there and new enough; one of an `extra` may be missing."""
    name, needed = requirement.name, str(requirement.specifier)
    install = f"pip install '{DISTRIBUTION}[{extra}]'" if extra else f"pip install '{name}{needed}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        if extra:
            return Finding("versions", name, "ok", f"not installed; only for {extra}", install)
        return Finding("versions", name, "problem", f"not installed; {needed} is needed", install)
    if requirement.specifier.contains(version, prereleases=True):
        return Finding("versions", name, "ok", version)
    return Finding("versions", name, "problem", f"{version}, but {needed} is needed", install)


def machine() -> Iterator[Finding]:
    """Yield torch's build, processors, memory and GPUs."""
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    yield Finding("machine", "torch", "ok", f"{torch.__version__}, {built}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("machine", "processor", "ok", f"{cores} cores, {torch.get_num_threads()} threads of torch")
    held = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    few = held < MEMORY
    advice = "Take a small model, train.batch=2 and --workers 1." if few else ""
    yield Finding("machine", "memory", "warning" if few else "ok", f"{held / GIB:.1f} GiB", advice)
    yield from gpus()


def gpus() -> Iterator[Finding]:
    """Yield each GPU with its memory, or why there is none."""
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield Finding("machine", f"cuda:{index}", "ok", f"{facts.name}, {facts.total_memory / GIB:.1f} GiB")
    if torch.cuda.device_count():
        return
    if shutil.which("nvidia-smi") is None:
        yield Finding("machine", "GPU", "ok", "none; runs take the processor, --workers N several at once")
    elif torch.version.cuda is None:
        advice = "Install the torch for your driver: https://pytorch.org/get-started/locally"
        yield Finding("machine", "GPU", "warning", "a driver, but torch is built without CUDA", advice)
    else:
        advice = "Compare the driver's version in nvidia-smi with torch's, and CUDA_VISIBLE_DEVICES."
        yield Finding("machine", "GPU", "warning", f"a driver, but none for CUDA {torch.version.cuda}", advice)


def plugins(registry: Registry) -> Iterator[Finding]:
    """Yield what the plugins of this package register, what each other one does, and which were not loaded."""
    counts = Counter(entry.plugin for entry in registry.entries.values())
    origins = {entry.plugin: entry.origin for entry in registry.entries.values()}
    loaded: dict[str, Any] = {name: module for name, module in registry.manager.list_name_plugin() if module}
    own = [name for name, module in loaded.items() if module.__name__.startswith(f"{PLUGINS}.")]
    registered = sum(counts[name] for name in own)
    yield Finding("plugins", BUILT_IN, "ok", f"{len(own)} plugins, which register {registered} things")
    for name in loaded.keys() - set(own):
        origin = origins.get(name) or loaded[name].__file__
        yield Finding("plugins", name, "ok", f"registers {counts[name]} things, from {origin}")
    for name in registry.blocked:
        yield Finding("plugins", name, "ok", "left out, by --block or MTLBENCH_BLOCKED")
    for failure in registry.failures:
        advice = f"Mend it, or leave it out: --block {failure.plugin}"
        yield Finding("plugins", failure.plugin, "problem", f"{failure.problem} ({failure.origin})", advice)


def data(registry: Registry) -> Iterator[Finding]:
    """Yield for each dataset with files where these are and in which layout, or what runs in their place."""
    root = os.environ.get("MTLBENCH_DATA")
    if root and not Path(root).is_dir():
        yield Finding("data", "MTLBENCH_DATA", "problem", f"there is no folder {root}", "Correct it, or unset it.")
    for entry in registry.of_kind("datasets"):
        if entry.value.files is not None:
            yield dataset_files(entry.value)


def dataset_files(dataset: Dataset) -> Finding:
    """Return where the files of a dataset are, or why they cannot be used."""
    assert dataset.files is not None, "only datasets with files are looked for"
    try:
        found = find(dataset, None)
    except MtlbenchError as error:
        return Finding("data", dataset.name, "problem", str(error), f"mtlbench data verify {dataset.name}")
    if found is not None:
        return Finding("data", dataset.name, "ok", f"layout {found.layout.name} in {found.root}")
    stand_in = f"{dataset.stand_in} stands in" if dataset.stand_in else "it cannot run"
    place = f"not found {searched(dataset.files, None)}" if os.environ.get("MTLBENCH_DATA") else "not found"
    return Finding("data", dataset.name, "ok", f"{place}; {stand_in}", f"mtlbench data info {dataset.name}")


def places(store: Path) -> Iterator[Finding]:
    """Yield whether the store and the cache can be written, and whether there is room."""
    try:
        runs = len(Store(store).runs())
        yield place("store", store, f"{runs} runs" if store.is_dir() else "made by the first run")
    except MtlbenchError as error:
        yield Finding("disk", "store", "problem", str(error))
    yield place("cache", cache_folder(), "of generated scenes and prepared images")


def place(name: str, folder: Path, words: str) -> Finding:
    """Return whether a folder, which need not be there yet, can be written, and has the room of FREE."""
    option = "--store DIR" if name == "store" else "MTLBENCH_CACHE"
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"mtlbench")
    except OSError as error:
        found = f"{folder} cannot be written: {error.strerror or error}"
        return Finding("disk", name, "problem", found, f"Name another folder by {option}.")
    free = free_bytes(folder)
    found = f"{folder.absolute()}, {words}; {free / GIB:.1f} GiB free"
    if free < FREE[name]:
        advice = f"Free {FREE[name] / GIB:.0f} GiB there, or name another folder by {option}."
        return Finding("disk", name, "warning", found, advice)
    return Finding("disk", name, "ok", found)
