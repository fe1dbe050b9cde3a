"""Files that survive: written whole or not at all, checked when read, moved aside when damaged."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from mtlprune_bench.errors import StoreError

SEAL = re.compile(rb'([{\[])"sha256(?:": "| )([0-9a-f]{64})",?')
SEAL_LIKE = re.compile(rb'."sha256|.{9,12}[0-9a-f]{64}')
"""What sealed JSON begins with, and what it still begins with where a byte of that is damaged."""


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk and rename it to `path`.

    Raises StoreError where the folder cannot be written or the disk is full; `path` is then as it was.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        temporary = Path(name)
        os.close(handle)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StoreError(
            f"Cannot write {path}: {error.strerror or error}. Free some space or choose another folder."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all. Raises StoreError."""
    write_atomic(path, lambda temporary: _write_bytes(temporary, text.encode()))


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def read_bytes(path: Path) -> bytes | None:
    """Return the bytes of a stored file, None where there is none. Raises StoreError where it cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"Cannot read {path}: {error.strerror or error}. Try again when it can be.") from error


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(text: str) -> str:
    """Return the JSON object or array `text` with its own SHA-256 as the first entry; it stays JSON."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    seal = f'"sha256": "{digest}"' if text[0] == "{" else f'"sha256 {digest}"'
    return f"{text[0]}{seal}{'' if text[1:].strip() in ('}', ']') else ','}{text[1:]}"


def is_sealed(data: bytes) -> bool:
    """Return whether JSON has a checksum, which files of the first version of stores had not."""
    return SEAL_LIKE.match(data) is not None


def unsealed(data: bytes) -> bytes:
    """Return JSON as it was before it was sealed; what has no checksum, as it is.

    Raises ValueError where the checksum does not fit.
    """
    if not is_sealed(data):
        return data
    found = SEAL.match(data)
    text = found[1] + data[found.end() :] if found else b""
    if found is None or hashlib.sha256(text).hexdigest().encode() != found[2]:
        raise ValueError("the checksum does not fit")
    return text


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to `<name>.damaged-N` beside it, and return the new path."""
    number = 1
    while (target := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.replace(target)
    return target


def discard(path: Path, error: Exception) -> None:
    """Set a damaged file aside and warn of it: whoever needs it makes it again."""
    kept = set_aside(path)
    reason = " ".join(str(error).split())
    warnings.warn(f"{path} is damaged ({reason}); it is kept as {kept.name} and made again.", stacklevel=3)


def is_locked(path: Path) -> bool:
    """Return whether a living process holds the lock file `path`."""
    if not path.exists():
        return False
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    lock.release()
    return False


def _owner(path: Path) -> str:
    """Return the process that says it holds the lock file `path`; "unknown" where that cannot be read."""
    try:
        text = path.with_suffix(".owner").read_text()
    except (OSError, ValueError):
        return "unknown"
    return text if text.isdecimal() and len(text) < 20 else "unknown"


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file `path`; where another process has it, call `on_wait(its process id)` and wait.

    The operating system drops the lock of a process that dies. Raises StoreError where `path` cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            on_wait(_owner(path))
            lock.acquire()
        path.with_suffix(".owner").write_text(str(os.getpid()))
    except OSError as error:
        raise StoreError(
            f"Cannot write in {path.parent}: {error.strerror or error}. Choose another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()
