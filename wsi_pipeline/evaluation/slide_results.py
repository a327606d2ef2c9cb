"""The results of the test slides of a cohort, from the files of the stages scores, confusion and detect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.cohort.sheet import SlideRow
from wsi_pipeline.config import SlideLevelOptions
from wsi_pipeline.errors import StoreError
from wsi_pipeline.evaluation.consistency import check_chosen_for, common_model
from wsi_pipeline.evaluation.score_histogram import ScoreHistogram
from wsi_pipeline.metrics.calibration import CalibrationSums, at_temperature
from wsi_pipeline.metrics.curves import ConfusionCounts
from wsi_pipeline.metrics.lesions import SlideHits
from wsi_pipeline.metrics.pooled import PooledScores, ScoreSummary, bin_edges
from wsi_pipeline.metrics.steps import STEPS
from wsi_pipeline.receipts.base import read_receipt
from wsi_pipeline.receipts.evaluation import CalibrateReceipt, ConfusionReceipt, DetectReceipt, ScoresReceipt

# Slides without and with tumour whose scores decide on the bins for all: reading a histogram takes milliseconds.
_SAMPLE_SLIDES = 100


@dataclass(frozen=True, slots=True)
class ResultFolders:
    """The output folders of the stages before the evaluation, for one model."""

    scores: Path
    confusion: Path
    detections: Path

    def histogram(self, slide: str) -> Path:
        return self.scores / f"{slide}.parquet"

    def receipts(self, slide: str) -> tuple[Path, Path, Path]:
        """Receipts of the stages scores, confusion and detect."""
        name = f"{slide}.json"
        return self.scores / name, self.confusion / name, self.detections / name

    def complete(self, slide: str) -> bool:
        """Whether all results of a slide exist."""
        return all(file.is_file() for file in (self.histogram(slide), *self.receipts(slide)))


@dataclass(frozen=True, slots=True)
class SlideResult:
    """The receipts of one slide."""

    row: SlideRow
    scores: ScoresReceipt
    confusion: ConfusionReceipt
    detections: DetectReceipt

    @property
    def model(self) -> tuple[str, str]:
        """The slide and the digest of its model. Raises `StoreError` for receipts of different models."""
        slide = self.row.slide
        common_model([(slide, one.model_sha256) for one in (self.scores, self.confusion, self.detections)])
        return slide, self.scores.model_sha256

    @property
    def counts(self) -> ConfusionCounts:
        """The confusion matrix at the operating point."""
        cells = self.confusion.counts
        return ConfusionCounts(tp=cells.tp, fp=cells.fp, fn=cells.fn, tn=cells.tn)


def hits_of(detections: DetectReceipt) -> SlideHits | None:
    """Hits of the detections of a slide; None for a slide whose lesions cannot be scored."""
    if detections.lesions is None or detections.false_positives is None:
        return None
    return SlideHits(detections.lesions, detections.false_positives, detections.isolated or 0)


def hits_of_slides(slides: Sequence[SlideResult]) -> list[SlideHits]:
    """Hits of the slides whose lesions can be scored.

    Sorted, those with lesions last: the groups of slides that intervals leave out then depend on no order, and each has
    as many slides with lesions as any other, or one more.
    """
    found = [(s.row.slide, hits) for s in slides if (hits := hits_of(s.detections)) is not None]
    return [hits for _, hits in sorted(found, key=lambda one: (bool(one[1].lesions), one[0]))]


@dataclass(slots=True)
class CohortResults:
    """The results of all slides, read slide by slide; of score histograms only sums are kept.

    `pooled` has the slides in the order of `slides`, `centres` those of each centre. `at_temperature` is empty where no
    temperature was fitted, `top_means` where no slide score needs them. `chosen` and `model`, a digest, are None for a
    cohort without slides.
    """

    chosen: CalibrateReceipt | None
    model: str | None = None
    slides: list[SlideResult] = field(default_factory=list)
    pooled: PooledScores = field(default_factory=PooledScores)
    centres: dict[str, PooledScores] = field(default_factory=dict)
    at_temperature: list[CalibrationSums] = field(default_factory=list)
    top_means: dict[str, float | None] = field(default_factory=dict)


def load_results(
    rows: Sequence[SlideRow], folders: ResultFolders, calibration: Path, options: SlideLevelOptions
) -> CohortResults:
    """Read the results of slides.

    Raises `StoreError` where they contradict the sheet or the operating point, or are of two models.
    """
    if not rows:
        return CohortResults(None)
    chosen = read_receipt(calibration, CalibrateReceipt)
    results = CohortResults(chosen)
    # The scaled step of each step.
    scaled = at_temperature(np.arange(STEPS + 1), chosen.temperature.value) if chosen.temperature else None
    for row in rows:
        scores, confusion, detections = folders.receipts(row.slide)
        result = SlideResult(
            row,
            read_receipt(scores, ScoresReceipt),
            read_receipt(confusion, ConfusionReceipt),
            read_receipt(detections, DetectReceipt),
        )
        _check(result, chosen, calibration)
        results.slides.append(result)
    edges = _bin_edges(results.slides, folders)
    for result in results.slides:
        row = result.row
        counted = ScoreHistogram.read(folders.histogram(row.slide), result.scores)
        sketch = ScoreSummary.of(counted.steps, counted.normal, counted.tumor, edges)
        results.pooled.add(row.slide, counted.steps, counted.normal, counted.tumor, sketch)
        if row.centre:
            own = results.centres.setdefault(row.centre, PooledScores())
            own.add(row.slide, counted.steps, counted.normal, counted.tumor, sketch)
        if scaled is not None:
            sums = CalibrationSums.of(scaled[counted.steps], counted.normal, counted.tumor)
            results.at_temperature.append(sums)
        if options.score == "top_share":
            results.top_means[row.slide] = counted.top_mean(options.top_share)
    results.model = common_model([one.model for one in results.slides])
    return results


def _bin_edges(slides: Sequence[SlideResult], folders: ResultFolders) -> NDArray[np.int64]:
    """Edges of bins for the scores of all slides, from a sample of them that does not depend on their order."""
    ordered = sorted(slides, key=lambda result: result.row.slide)
    sample = list[SlideResult]()
    for has_tumor in (False, True):
        own = [one for one in ordered if (one.scores.positions.tumor > 0) == has_tumor]
        sample += [own[k] for k in np.linspace(0, len(own) - 1, min(len(own), _SAMPLE_SLIDES)).astype(int)]
    counted = ScoreHistogram.sum_of(ScoreHistogram.read(folders.histogram(one.row.slide), one.scores) for one in sample)
    return bin_edges(counted.steps, counted.normal, counted.tumor)


def _check(result: SlideResult, chosen: CalibrateReceipt, calibration: Path) -> None:
    slide, point = result.row.slide, chosen.operating_point
    if result.confusion.threshold_log_odds != point.threshold_log_odds:
        raise StoreError(
            f"slide {slide}: its confusion map was computed at the threshold {result.confusion.threshold:g}, but "
            f"{calibration} has {point.threshold:g}",
            remedy="Run the stage confusion again for all slides",
        )
    check_chosen_for(chosen, *result.model)
    truth, label = result.scores.truth, result.row.label
    has = "has tumour" if truth.tumor else "has no tumour"
    if (label == "normal" and truth.tumor) or (label == "tumor" and not truth.tumor and not truth.ignored):
        raise StoreError(
            f"slide {slide}: the sheet's label is {label}, but its truth {has}",
            remedy="Correct the sheet or the annotation, and run the stage truth again",
        )
