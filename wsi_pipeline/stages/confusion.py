"""Stage confusion: the confusion of a heatmap with the truth at the operating point."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from wsi_pipeline.config import ConfusionRun
from wsi_pipeline.config.loading import parse_options
from wsi_pipeline.stages.arguments import (
    Calibration,
    FigureArg,
    Geojson,
    HeatmapArg,
    HeatmapReceiptArg,
    Options,
    PyramidArg,
    ReceiptArg,
    Slide,
    Store,
    Synthetic,
    TruthArg,
    TruthReceiptArg,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """`calibration` is the receipt of the stage calibrate."""

    pyramid: Path
    truth: Path
    truth_receipt: Path
    heatmap: Path
    heatmap_receipt: Path
    calibration: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """`picture` is a PNG; a PDF is written beside it."""

    store: Path
    receipt: Path
    picture: Path
    geojson: Path


def command(
    *,
    pyramid: PyramidArg,
    truth: TruthArg,
    truth_receipt: TruthReceiptArg,
    heatmap: HeatmapArg,
    heatmap_receipt: HeatmapReceiptArg,
    calibration: Calibration,
    slide: Slide,
    store: Store,
    receipt: ReceiptArg,
    picture: FigureArg,
    geojson: Geojson,
    options: Options = "{}",
    synthetic: Synthetic = False,
) -> None:
    """Compare a heatmap with the truth at the operating point."""
    inputs = Inputs(
        pyramid=pyramid,
        truth=truth,
        truth_receipt=truth_receipt,
        heatmap=heatmap,
        heatmap_receipt=heatmap_receipt,
        calibration=calibration,
    )
    outputs = Outputs(store=store, receipt=receipt, picture=picture, geojson=geojson)
    run(slide, inputs, outputs, parse_options(ConfusionRun, options), synthetic=synthetic)


def run(slide: str, inputs: Inputs, outputs: Outputs, options: ConfusionRun, *, synthetic: bool = False) -> None:
    """Write the confusion image of one slide. Raises `StoreError` for inputs of another slide or model."""
    import numpy as np

    from wsi_pipeline.evaluation.confusion import (
        CONFUSION_LABELS,
        NOT_SCORED,
        classify,
        confusion_features,
        counts_of,
        ratios_of,
        shares_of,
    )
    from wsi_pipeline.evaluation.consistency import check_chosen_for
    from wsi_pipeline.evaluation.labelled_heatmap import LabelledHeatmap
    from wsi_pipeline.masks.geojson import write_features
    from wsi_pipeline.masks.label_images import IGNORE
    from wsi_pipeline.plots.figures import save_figure, slide_panels
    from wsi_pipeline.pyramid.heatmap_store import probabilities
    from wsi_pipeline.pyramid.ome_zarr import Image, write_image
    from wsi_pipeline.pyramid.pyramid import Pyramid
    from wsi_pipeline.receipts.base import read_receipt, write_receipt
    from wsi_pipeline.receipts.evaluation import CalibrateReceipt, ConfusionCells, ConfusionReceipt, ConfusionShares
    from wsi_pipeline.receipts.slides import TruthReceipt

    pyramid = Pyramid(inputs.pyramid)
    labelled = LabelledHeatmap.read(slide, inputs.heatmap, inputs.heatmap_receipt, inputs.truth, options)
    heat = labelled.heat
    chosen = read_receipt(inputs.calibration, CalibrateReceipt)
    check_chosen_for(chosen, slide, labelled.receipt.model_sha256)
    point = chosen.operating_point
    codes = classify(heat.data, labelled.labels, point.threshold_log_odds)
    counts = counts_of(codes)
    image = Image(codes, heat.mpp, heat.first_centre_um)
    write_image(outputs.store, image, name="confusion", slide_mpp=pyramid.mpp, labels=CONFUSION_LABELS, fill=NOT_SCORED)
    shown = replace(heat, data=probabilities(heat.data))
    figure = slide_panels(slide, pyramid, labelled.truth, shown, image, threshold=point.threshold, synthetic=synthetic)
    save_figure(figure, outputs.picture)
    origin = read_receipt(inputs.truth_receipt, TruthReceipt).qupath_origin
    write_features(outputs.geojson, confusion_features(codes, labelled.receipt.grid), origin)
    write_receipt(
        outputs.receipt,
        ConfusionReceipt(
            slide=slide,
            model_sha256=labelled.receipt.model_sha256,
            threshold=point.threshold,
            threshold_log_odds=point.threshold_log_odds,
            counts=ConfusionCells(**asdict(counts)),
            share_of_total=ConfusionShares(**shares_of(counts)),
            **ratios_of(counts),
            ignored=int((np.isfinite(heat.data) & (labelled.labels == IGNORE)).sum()),
            options=options,
        ),
    )
    shares = f"{counts.tp} true positive, {counts.fp} false positive, {counts.fn} false negative"
    log.info("%s: %d patches scored, %s", slide, counts.total, shares)
