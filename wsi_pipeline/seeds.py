"""Random generators keyed by seed and name, instead of one generator with shared state.

A new slide does not change the draws of other slides, and step `n` of a training draws the same after an interruption.
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *keys: str | int) -> np.random.Generator:
    """The generator for `seed` and `keys`; equal arguments give equal draws on every machine."""
    text = "\0".join(f"{type(key).__name__}:{key}" for key in keys)
    digest = hashlib.sha256(text.encode()).digest()
    words = np.frombuffer(digest, np.uint32)
    return np.random.default_rng(np.random.SeedSequence([seed, *words.tolist()]))
