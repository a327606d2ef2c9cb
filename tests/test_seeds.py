"""Random draws depend only on the seed and the keys, in this and in later versions."""

from __future__ import annotations

from itertools import combinations

from wsi_pipeline.seeds import generator


def test_draws_are_the_same_in_all_versions() -> None:
    raw = generator(1, "patches", "tumor_001", 1).bit_generator.random_raw(2).tolist()
    assert raw == [4778381345211606690, 16789060072182480434]


def test_each_seed_and_each_key_has_its_own_draws() -> None:
    keys: list[tuple[str | int, ...]] = [(), ("a",), ("b",), ("a", "b"), ("ab",), ("b", "a"), ("a", 1), ("a", "1")]
    draws = [generator(seed, *given).random() for seed in (1, 2) for given in keys]
    assert all(a != b for a, b in combinations(draws, 2))
