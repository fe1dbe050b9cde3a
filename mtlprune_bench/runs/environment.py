"""The environment of a run: the device that it runs on, and the versions and machine that made its numbers."""

from __future__ import annotations

import contextlib
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch

from mtlprune_bench.errors import UsageError

DISTRIBUTION = "mtlprune-bench"


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`: auto, cpu, cuda or cuda:N. Raises UsageError where there is none."""
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise UsageError(f"Device '{name}' is none of auto, cpu, cuda and cuda:N.")
    if kind == "cpu":
        return torch.device("cpu")
    if int(index or 0) >= torch.cuda.device_count():
        raise UsageError(f"There is no device '{name}': {torch.cuda.device_count()} CUDA devices were found.")
    return torch.device("cuda", int(index or 0))


def environment(device: torch.device) -> dict[str, Any]:
    """Return what the numbers of a run may depend on beside its configuration, JSON-like."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "packages": _versions(),
        "commit": _commit(),
    }


def _versions() -> dict[str, str]:
    """Return the versions of this package and of those it requires, by name."""
    required = [
        re.split(r"[ <>=!~;\[]", line)[0]
        for line in metadata.requires(DISTRIBUTION) or ()
        if "extra ==" not in line
    ]
    installed = {}
    for name in [DISTRIBUTION, *required]:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def _commit() -> str | None:
    """Return the git commit of the working folder, with "+" if it has changes; None outside a checkout."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
