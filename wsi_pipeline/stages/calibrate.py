"""Stage calibrate: the operating point and the temperature, chosen on the validation slides, never on test slides.

No slide is read for a fixed threshold without a temperature.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.cohort.sheet import Sheet, load_sheet
from wsi_pipeline.config import CalibrateRun
from wsi_pipeline.config.loading import parse_options
from wsi_pipeline.stages.arguments import DetectionsFolder, Exclude, Options, ReceiptArg, Rows, ScoresFolder, SheetArg

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Output folders of the stages scores and detect."""

    scores: Path
    detections: Path


@dataclass(frozen=True, slots=True)
class Outputs:
    receipt: Path


def command(
    *,
    sheet: SheetArg,
    scores: ScoresFolder,
    detections: DetectionsFolder,
    receipt: ReceiptArg,
    exclude: Exclude = None,
    rows: Rows = None,
    options: Options = "{}",
) -> None:
    """Choose the operating point on the validation slides."""
    loaded = load_sheet(sheet, exclude=tuple(exclude or ()), check_files=False)
    loaded.check_digest(rows, "validation")
    run(loaded, Inputs(scores, detections), Outputs(receipt), parse_options(CalibrateRun, options))


def run(sheet: Sheet, inputs: Inputs, outputs: Outputs, options: CalibrateRun) -> None:
    """Choose on the validation slides of the sheet. Raises `ConfigError` where they do not allow the rule."""
    from wsi_pipeline.evaluation.calibration import fixed_point, point_by_detections, point_by_patches, temperature_of
    from wsi_pipeline.evaluation.consistency import common_model
    from wsi_pipeline.evaluation.score_histogram import ScoreHistogram
    from wsi_pipeline.evaluation.slide_results import hits_of
    from wsi_pipeline.receipts.base import read_receipt, write_receipt
    from wsi_pipeline.receipts.evaluation import CalibrateReceipt, DetectReceipt, ScoresReceipt

    model = None
    temperature = None
    rule = options.operating_point
    point = fixed_point(rule)
    if rule.rule != "fixed" or options.calibration.temperature:
        slides = sheet.of_split("validation")
        receipts = {slide: read_receipt(inputs.scores / f"{slide}.json", ScoresReceipt) for slide in slides}
        model = common_model([(slide, one.model_sha256) for slide, one in receipts.items()])
        tables = (ScoreHistogram.read(inputs.scores / f"{slide}.parquet", one) for slide, one in receipts.items())
        histogram = ScoreHistogram.sum_of(tables).histogram
        if rule.rule == "false_positives_per_slide":
            detected = [read_receipt(inputs.detections / f"{slide}.json", DetectReceipt) for slide in slides]
            hits = [one for receipt in detected if (one := hits_of(receipt)) is not None]
            point = point_by_detections(rule, slides, histogram, hits)
        elif rule.rule != "fixed":
            point = point_by_patches(rule, slides, histogram)
        if options.calibration.temperature:
            temperature = temperature_of(slides, histogram)
    receipt = CalibrateReceipt(model_sha256=model, operating_point=point, temperature=temperature, options=options)
    write_receipt(outputs.receipt, receipt)
    log.info("operating point %.6g: %s, %s", point.threshold, point.rule, point.chosen_on)
