"""Random generators that depend on nothing but what they are asked for.

A new slide does not change the draws of the others, and step `n` of a training draws the same whether
or not the training was interrupted before it.
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *keys: str | int) -> np.random.Generator:
    """The generator for (seed, keys)."""
    text = "\0".join(f"{type(key).__name__}:{key}" for key in keys)
    digest = hashlib.sha256(text.encode()).digest()
    words = np.frombuffer(digest, np.uint32)
    return np.random.default_rng(np.random.SeedSequence([seed, *words.tolist()]))
