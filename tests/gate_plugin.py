"""A plugin for tests that kill: trainings that wait to be killed, and a write that kills its own process."""

import os
import signal
import time
from pathlib import Path

from mtlprune_bench import hookimpl

GATE = os.environ.get("GATE")
"""The folder where trainings note that they have come to `STEP` and wait for the file `open`; None: they go on."""
STEP = 10
DEADLY = os.environ.get("DEADLY_WRITES")
"""How many checkpoints of dense trainings a process may write; it dies before it has renamed the next."""

_written = []
_replace = Path.replace


@hookimpl
def step_finished(run, step, losses):
    if GATE and step == STEP:
        note = Path(GATE, f"{run.method}: {run.stage}")
        note.with_suffix(".part").write_text(str(os.getpid()))
        note.with_suffix(".part").replace(note)
        while not Path(GATE, "open").exists():
            time.sleep(0.01)


def deadly(path, target):
    if target.name == "checkpoint.safetensors" and target.parent.name.startswith("dense-"):
        _written.append(target)
        if len(_written) > int(DEADLY):
            os.kill(os.getpid(), signal.SIGKILL)
    return _replace(path, target)


if DEADLY:
    Path.replace = deadly
