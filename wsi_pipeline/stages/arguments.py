"""Annotated types of the options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsi_pipeline.config.base import Origin, TissueMethod

Slide = Annotated[str, typer.Option(help="Slide id.")]
Options = Annotated[str, typer.Option(metavar="JSON", help="Options of the stage; missing keys take their defaults.")]
Threads = Annotated[int, typer.Option(min=1, help="Number of worker threads.")]
Store = Annotated[Path, typer.Option(help="OME-Zarr store to write.")]
PatchStoreArg = Annotated[Path, typer.Option(help="Zarr store of patches to write.")]
PatchIndex = Annotated[Path, typer.Option(help="Parquet index to write.")]
ReceiptArg = Annotated[Path, typer.Option(help="Receipt (JSON) to write.")]
Receipts = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Receipts of the slides of this split, {slide} standing for the slide id."),
]
FigureArg = Annotated[Path, typer.Option("--picture", help="Figure (PNG) to write, and a PDF beside it.")]
Geojson = Annotated[Path, typer.Option("--geojson", help="QuPath GeoJSON to write.")]
PyramidArg = Annotated[Path, typer.Option("--pyramid", help="The slide's pyramid.ome.zarr.")]
TissueArg = Annotated[Path, typer.Option("--tissue", help="The slide's tissue.ome.zarr.")]
TruthArg = Annotated[Path, typer.Option("--truth", help="The slide's truth.ome.zarr.")]
TruthReceiptArg = Annotated[Path, typer.Option(help="Receipt of the truth.")]
AnnotationOrigin = Annotated[
    Origin | None,
    typer.Option(help="Corner that the annotation counts from; by default that of its format."),
]
TissueMethodArg = Annotated[
    TissueMethod | None,
    typer.Option("--tissue-method", help="How to find the tissue under the annotation; by default glass_saturation."),
]
TissueThresholdArg = Annotated[
    float | None,
    typer.Option("--tissue-threshold", min=0, max=255, help="Threshold of the tissue, where none is to be computed."),
]
HeatmapArg = Annotated[Path, typer.Option("--heatmap", help="The slide's heatmap (OME-Zarr).")]
HeatmapReceiptArg = Annotated[Path, typer.Option(help="Receipt of the heatmap.")]
SlidesFolder = Annotated[Path, typer.Option("--slides", help="Folder of the slides, with pyramids and tissue masks.")]
WeightsArg = Annotated[Path, typer.Option(help="weights.safetensors of the model.")]
ModelArg = Annotated[Path, typer.Option("--model", help="model.json of the model.")]
PredictionCheckpoints = Annotated[
    Path | None, typer.Option("--checkpoints", help="Folder of predictions under way; by default the output folder.")
]
AllowUpsampling = Annotated[
    bool, typer.Option("--allow-upsampling", help="Predict slides coarser than the model's scale too.")
]
ScoresFolder = Annotated[Path, typer.Option("--scores", help="Folder with the outputs of the stage scores.")]
DetectionsFolder = Annotated[Path, typer.Option("--detections", help="Folder with the outputs of the stage detect.")]
Calibration = Annotated[Path, typer.Option(help="Receipt of the stage calibrate.")]
Rows = Annotated[str | None, typer.Option(help="Expected digest of the sheet's rows.")]
SheetArg = Annotated[Path, typer.Option("--sheet", help="The slide sheet.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Slides of the sheet to leave out.")]
SnakemakeFolder = Annotated[
    Path,
    typer.Option("--snakemake", help="Folder .snakemake of the runs, the source of the jobs' commands."),
]
Synthetic = Annotated[bool, typer.Option(help="Mark figures as those of a synthetic slide.")]
