"""Problems that a user can act on: each is printed as one clear line, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MtlbenchError(Exception):
    """A problem with a clear cause; the message names what is wrong, where, and the next step."""

    exit_code = 1


class UsageError(MtlbenchError):
    """The request cannot be carried out as written: a name, a value or an option is wrong."""

    exit_code = 2


class DataError(MtlbenchError):
    """A dataset's files are missing, damaged or contradict each other."""


class PluginError(MtlbenchError):
    """A plugin breaks the contract, or two plugins register one name."""


class StoreError(MtlbenchError):
    """A folder or file of results cannot be written or read."""


class SparsityError(MtlbenchError):
    """The masks that were made do not have the sparsity that was asked for."""


class DivergedError(MtlbenchError):
    """A loss stopped being finite."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error for a name that is not known: the nearest known name, then all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return UsageError(f"Unknown {kind} '{name}'.{hint} Known: {', '.join(names) or 'none'}.")
