"""Points: every line of the package that a process comes to, counted, so that it can be ended at any of them."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import mtlprune_bench

ROOTS = tuple(f"{Path(folder).resolve()}/" for folder in (*mtlprune_bench.__path__, "plugins"))
OTHER = "between"
STAGES = {
    ("train.py", "train"): "training",
    ("numerics.py", "look"): "training",
    ("state.py", "save"): "checkpoint write",
    ("checkpoint.py", "save_masks"): "mask write",
    ("checkpoint.py", "save_scores"): "score write",
    ("checkpoint.py", "save_tensors"): "weight write",
    ("store.py", "write_rows"): "row write",
    ("store.py", "write_json"): "description write",
    ("store.py", "append_history"): "history write",
    ("store.py", "read_rows"): "reading back",
    ("checkpoint.py", "load_tensors"): "reading back",
    ("prune.py", "make_masks"): "scoring",
    ("prune.py", "scores_of"): "scoring",
    ("regrow.py", "regrow_masks"): "scoring",
    ("evaluate.py", "evaluate"): "evaluation",
    ("prepared.py", "prepare"): "data preparation",
    ("cache.py", "make"): "data preparation",
}
"""What a process is at while a function runs, or one that it calls; the innermost one counts."""

PATIENCE = 180.0
"""Seconds after which a child is taken for one that hangs."""


class Points:
    """Follows this thread through the package, line by line, and calls `act(stage, line)` at line `at`.

    `seen` is what the process was at in each line, in order.
    """

    def __init__(self, at=None, act=None):
        self.at = at
        self.act = act
        self.seen = []
        self._inside = [OTHER]
        self._known = {}

    def __enter__(self):
        sys.settrace(self._called)
        return self

    def __exit__(self, *problem):
        sys.settrace(None)

    def _called(self, frame, event, argument):
        code = frame.f_code
        if code not in self._known:
            ours = code.co_filename.startswith(ROOTS)
            name = Path(code.co_filename).name
            self._known[code] = (ours, STAGES.get((name, code.co_name)) if ours else None)
        ours, stage = self._known[code]
        if not ours:
            return None
        if stage is None:
            return self._line
        if self._inside[-1] == "checkpoint write" and stage == "weight write":
            stage = "checkpoint write"
        self._inside.append(stage)
        return self._staged

    def _line(self, frame, event, argument):
        if event == "line":
            self.seen.append(self._inside[-1])
            if len(self.seen) == self.at:
                code = frame.f_code
                self.act(self._inside[-1], f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}")
        return self._line

    def _staged(self, frame, event, argument):
        if event == "return":
            self._inside.pop()
        else:
            self._line(frame, event, argument)
        return self._staged


def die(stage, line):
    """End this process as a crash or the machine would: nothing handles it, nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt(stage, line):
    """Raise what Ctrl-C does."""
    raise KeyboardInterrupt


class Child:
    """A copy of this process, which knows all that is imported, and carries out `action`.

    `ended` is its exit code, minus the signal that killed it; `said` is what it printed.
    """

    def __init__(self, action, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / ".child.log"
        self._log.write_text("")
        self.pid = os.fork()
        if self.pid == 0:
            self._carry_out(action)

    def _carry_out(self, action):
        code = 1
        try:
            log = os.open(self._log, os.O_WRONLY)
            for number in (1, 2):
                os.dup2(log, number)
            # Pytest, of which this process is a copy, would collect warnings and not print them.
            warnings.showwarning = lambda message, *where, **more: os.write(2, f"{message}\n".encode())
            action()
            code = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)

    def has_ended(self):
        """Return whether it has; if so, `ended` says how."""
        if not hasattr(self, "ended"):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.ended = os.waitstatus_to_exitcode(status)
        return hasattr(self, "ended")

    def kill(self):
        """Kill it, and return itself."""
        if not self.has_ended():
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def wait(self, patience=PATIENCE):
        """Wait until it has ended, and return itself. Raises AssertionError where it hangs."""
        deadline = time.monotonic() + patience
        while not self.has_ended():
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise AssertionError(f"It hangs. {self.said}")
            time.sleep(0.002)
        return self

    @property
    def said(self):
        """Return what it has printed."""
        return self._log.read_text()


def points_of(action, folder):
    """Return what `action` is at in each line that it comes to, of which a child tries it out."""
    path = folder / ".stages"

    def count():
        with Points() as points:
            action()
        path.write_text("\n".join(points.seen))

    child = Child(count, folder).wait()
    assert child.ended == 0, child.said
    return path.read_text().splitlines()


def chosen(stages, count, rng):
    """Return `count` lines, as many of each stage as there are, and each of them at random."""
    by_stage = {}
    for number, stage in enumerate(stages, 1):
        by_stage.setdefault(stage, []).append(number)
    names = sorted(by_stage)
    rng.shuffle(names)
    return [rng.choice(by_stage[names[index % len(names)]]) for index in range(count)]


class Tally:
    """How many processes were killed, by what they were at; printed in the end."""

    def __init__(self, what):
        self.what = what
        self.killed = Counter()

    def child(self, action, folder, at):
        """Carry out `action` in a child that is killed at line `at`, and return whether it came so far."""
        note = folder / ".killed"

        def act(stage, line):
            note.write_text(stage)
            die(stage, line)

        def carry_out():
            with Points(at, act):
                action()

        child = Child(carry_out, folder).wait()
        if child.ended == 0:
            return False
        assert child.ended == -signal.SIGKILL, child.said
        self.killed[note.read_text()] += 1
        return True

    def tell(self, capsys):
        """Print the figures."""
        stages = ", ".join(f"{stage} {count}" for stage, count in sorted(self.killed.items()))
        with capsys.disabled():
            print(f"\n{self.what}: {sum(self.killed.values())} processes killed ({stages})")
