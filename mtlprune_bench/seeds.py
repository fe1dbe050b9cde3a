"""Seeds derived from seeds: every random choice is a pure function of the run's seed and its purpose."""

from __future__ import annotations

import hashlib


def derive(seed: int, *purpose: str | int) -> int:
    """Return a seed in [0, 2**63) that depends on `seed` and every word of `purpose`, on any platform."""
    words = "/".join(str(word) for word in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") >> 1
