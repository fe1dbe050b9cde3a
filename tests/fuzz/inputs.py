"""Inputs: many for one target, none of which may break it, hang it, or make it write where it should not."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import threading
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

SHORT = 40
"""The inputs of each target in the ordinary suite."""

HANGS = 60
"""Seconds of the processor after which an input is taken for one that hangs."""

WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}
FORBIDDEN = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class"}
DEVICES = ("/dev/", "/proc/self/")

_guard: list[tuple[int, Path, list[str]]] = []


def _audit(event, arguments):
    """Note what is written outside the guarded folder, and what is executed or fetched, in the guarded thread."""
    if not _guard or _guard[-1][0] != threading.get_ident():
        return
    _, folder, broken = _guard[-1]
    if event in FORBIDDEN:
        broken.append(f"{event} {arguments!r}")
    if event == "open":
        path, mode, flags = arguments
        writes = set(mode) & set("wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        paths = [path] if writes else []
    else:
        paths = arguments[:2] if event in WRITES else []
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike):
            place = os.path.abspath(os.fsdecode(path))  # noqa: PTH100  (links stay as they are)
            if not place.startswith((f"{folder}{os.sep}", *DEVICES)) and place != str(folder):
                broken.append(f"{event} {place}")


sys.addaudithook(_audit)
platform.processor()  # asks another program, once; libraries do so when they are first imported


class Hang(BaseException):
    """An input took far too long."""


def _ring(number, frame):
    raise Hang


@contextlib.contextmanager
def guarded(folder):
    """Let nothing hang, be executed, or be written outside `folder`, which is also where it happens."""
    broken: list[str] = []
    before = signal.signal(signal.SIGPROF, _ring), Path.cwd(), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    os.chdir(folder)
    signal.setitimer(signal.ITIMER_PROF, HANGS)
    _guard.append((threading.get_ident(), folder, broken))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _guard.pop()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before[0])
        os.chdir(before[1])
        sys.dont_write_bytecode = before[2]
    assert not broken, broken


def sizes(count):
    """Return the mark that gives a test `count`: a few inputs in the ordinary suite, so many under `-m fuzz`."""
    long = pytest.param(count, id=str(count), marks=pytest.mark.fuzz)
    return pytest.mark.parametrize("count", [pytest.param(SHORT, id="short"), long])


def fuzz(target, strategy, count, folder, capsys, expected=()):
    """Give `target` inputs of `strategy`; it may raise what is `expected`, with a message of one line."""
    tried = refused = 0

    def one(value):
        nonlocal tried, refused
        tried += 1
        with guarded(folder):
            words = "nothing is wrong"
            try:
                target(value)
            except expected as error:
                refused += 1
                words = str(error)
            assert words, "an error says what is wrong"

    few = count == SHORT
    options = settings(
        max_examples=count,
        derandomize=few,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    options(given(strategy)(one))()
    if not few:
        with capsys.disabled():
            print(f"\n{os.environ['PYTEST_CURRENT_TEST'].split()[0]}: {tried} inputs, {refused} refused")
    assert tried >= 0.9 * count


@st.composite
def mutated(draw, data):
    """Return the bytes `data` with a few of them changed, added, taken away, or doubled."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(out)))
        length = draw(st.integers(0, 12))
        match draw(st.sampled_from(["change", "add", "remove", "double", "cut"])):
            case "change":
                out[place : place + length] = draw(st.binary(min_size=length, max_size=length))
            case "add":
                out[place:place] = draw(st.binary(max_size=12))
            case "remove":
                del out[place : place + length]
            case "double":
                out[place:place] = out[place : place + 20 * length]
            case "cut":
                del out[place:]
    return bytes(out)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 1, 10**9, 10**18, 10**30, 0.5, 0.9, 1.0, float("nan"), float("inf"), -0.0, 1e308]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["", " ", "../../x", "/etc/passwd", "\0", "a\nb", "none", "true", "1e400", "a,b", "0.5,0.9", "é" * 300]
    ),
)
"""Values that nobody means."""

TREES = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
"""JSON-like values."""
