"""The processes that a process has started."""

from __future__ import annotations

import psutil


def workers_of(process):
    """Return the children of `process` that carry out jobs, not the tracker of resources; none that ends."""
    return [child for child in process.children(recursive=True) if "spawn_main" in " ".join(_command(child))]


def _command(process):
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # it has ended, and its parent may not have noticed yet
        return []


def seconds_of(process):
    """Return the seconds that `process` has computed; 0 where it has ended."""
    try:
        return process.cpu_times().user
    except psutil.NoSuchProcess:
        return 0.0
