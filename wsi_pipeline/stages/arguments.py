"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Slide = Annotated[str, typer.Option(help="Slide id.")]
Options = Annotated[str, typer.Option(metavar="JSON", help="Options of the stage; left out ones are defaults.")]
Threads = Annotated[int, typer.Option(min=1, help="Worker threads.")]
Store = Annotated[Path, typer.Option(help="OME-Zarr store to write.")]
PatchStore = Annotated[Path, typer.Option(help="Zarr store of patches to write.")]
PatchIndex = Annotated[Path, typer.Option(help="Parquet index to write.")]
Receipt = Annotated[Path, typer.Option(help="Receipt (JSON) to write.")]
FigureArg = Annotated[Path, typer.Option("--picture", help="Figure (PNG) to write, and a PDF beside it.")]
Geojson = Annotated[Path, typer.Option("--geojson", help="QuPath GeoJSON to write.")]
PyramidArg = Annotated[Path, typer.Option("--pyramid", help="The slide's pyramid.ome.zarr.")]
TissueArg = Annotated[Path, typer.Option("--tissue", help="The slide's tissue.ome.zarr.")]
TruthArg = Annotated[Path, typer.Option("--truth", help="The slide's truth.ome.zarr.")]
HeatmapArg = Annotated[Path, typer.Option("--heatmap", help="The slide's heatmap store.")]
HeatmapReceiptArg = Annotated[Path, typer.Option(help="The heatmap's receipt.")]
SlidesFolder = Annotated[Path, typer.Option("--slides", help="Folder of the slides, with pyramids and tissue.")]
Weights = Annotated[Path, typer.Option(help="weights.safetensors of the model.")]
ModelArg = Annotated[Path, typer.Option("--model", help="model.json of the model.")]
AllowUpsampling = Annotated[
    bool, typer.Option("--allow-upsampling", help="Predict slides coarser than the model's scale too.")
]
ScoresFolder = Annotated[Path, typer.Option("--scores", help="Folder that the stage scores wrote into.")]
DetectionsFolder = Annotated[Path, typer.Option("--detections", help="Folder that the stage detect wrote into.")]
Calibration = Annotated[Path, typer.Option(help="Receipt of the stage calibrate.")]
Rows = Annotated[str | None, typer.Option(help="Digest of the sheet's rows that is expected.")]
SheetArg = Annotated[Path, typer.Option("--sheet", help="The slide sheet.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Slides of the sheet to leave out.")]
State = Annotated[
    Path,
    typer.Option("--snakemake", help="Snakemake's folder .snakemake, for the commands of the jobs."),
]
Synthetic = Annotated[bool, typer.Option(help="Say on pictures that the slide is synthetic.")]
