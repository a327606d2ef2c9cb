"""The cache of predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsi_pipeline.model.prediction_cache import PredictionCache
from wsi_pipeline.receipts.models import PrecisionFacts

PRECISION = PrecisionFacts(device="cpu", dtype="float32")
# Neighbours in float32, whose probabilities are equal.
LOG_ODDS = np.array([-88.5, 0.25, 20, np.nextafter(np.float32(20), np.float32(21))], np.float32)


def write_four_of_ten(path: Path) -> PredictionCache:
    scores = PredictionCache.open(path, "a" * 64, 10)
    scores.precision = PRECISION
    scores.add(0, LOG_ODDS, np.ones(4, np.bool_))
    scores.save()
    return scores


def test_added_predictions_are_read_back(tmp_path: Path) -> None:
    write_four_of_ten(tmp_path / "s.raw.npz")
    scores = PredictionCache.open(tmp_path / "s.raw.npz", "a" * 64, 10)
    assert (scores.done, scores.precision) == (4, PRECISION)
    scores.add(4, np.full(6, 0.5, np.float32), np.ones(6, np.bool_))
    assert scores.log_odds.tolist() == [*LOG_ODDS.tolist(), *[0.5] * 6]
    assert scores.log_odds.dtype == np.float32


def test_predictions_of_other_inputs_are_ignored(tmp_path: Path) -> None:
    write_four_of_ten(tmp_path / "s.raw.npz")
    scores = PredictionCache.open(tmp_path / "s.raw.npz", "b" * 64, 10)
    assert (scores.done, scores.precision) == (0, None)


def test_patches_on_damaged_chunks_are_retried(tmp_path: Path) -> None:
    scores = write_four_of_ten(tmp_path / "s.raw.npz")
    scores.add(4, np.full(4, 0.5, np.float32), np.array([True, False, True, True]))
    assert np.isnan(scores.log_odds[5])
    scores.save()
    assert PredictionCache.open(tmp_path / "s.raw.npz", "a" * 64, 10).done == 5


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"something else"])
def test_a_damaged_file_is_ignored(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "s.raw.npz"
    path.write_bytes(content)
    assert PredictionCache.open(path, "a" * 64, 10).done == 0
    assert "s.raw.npz: ignored, it is damaged" in caplog.text


def test_a_file_with_wrong_bytes_is_ignored(tmp_path: Path) -> None:
    write_four_of_ten(tmp_path / "s.raw.npz")
    content = (tmp_path / "s.raw.npz").read_bytes()
    known = PredictionCache.open(tmp_path / "s.raw.npz", "a" * 64, 10)
    for position in range(len(content)):
        wrong = bytearray(content)
        wrong[position] ^= 0x5A
        (tmp_path / "s.raw.npz").write_bytes(wrong)
        scores = PredictionCache.open(tmp_path / "s.raw.npz", "a" * 64, 10)
        # Some bytes of a zip file have no meaning.
        assert scores.done in (0, 4)
        if scores.done:
            np.testing.assert_array_equal(scores.log_odds, known.log_odds)


def test_a_truncated_file_is_ignored(tmp_path: Path) -> None:
    write_four_of_ten(tmp_path / "s.raw.npz")
    content = (tmp_path / "s.raw.npz").read_bytes()
    for length in range(0, len(content), 97):
        (tmp_path / "s.raw.npz").write_bytes(content[:length])
        assert PredictionCache.open(tmp_path / "s.raw.npz", "a" * 64, 10).done == 0
