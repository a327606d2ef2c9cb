"""The slides of the report: their data in several sizes, and the selection that fits the size of the page."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from PIL import Image as Pillow

from wsi_pipeline.evaluation.score_histogram import ScoreHistogram
from wsi_pipeline.geometry import Box
from wsi_pipeline.io.layout import Layout, SlideLayout
from wsi_pipeline.masks.label_images import LabelOverview
from wsi_pipeline.plots.colors import RgbImage
from wsi_pipeline.plots.overlays import outline_png, tissue_overlay, truth_overlay
from wsi_pipeline.pyramid.ome_zarr import open_image
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.receipts.base import read_receipt
from wsi_pipeline.receipts.evaluation import ScoresReceipt
from wsi_pipeline.report.page import embedded_json
from wsi_pipeline.report.slide_data import HeatGrid, heat_grid, read_detections

# Sizes to try, largest first: strides in rows and columns of heatmaps; shares of the longest edge of pictures.
_STRIDES = (1, 2, 3, 4, 6, 8)
_SHARES = (1.0, 0.75, 0.5, 0.35, 0.25)
_LEAST_PX = 128

# JSON objects that the script of the page reads.
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SlideEntry:
    """A slide for the script of the page; `heatmaps` and `pictures` hold the same content in falling sizes."""

    name: str
    facts: Json
    heatmaps: list[Json]
    pictures: list[Json]

    @classmethod
    def read(cls, files: SlideLayout, label: str, longest_px: int) -> Self:
        """From the results of a slide; the longer edge of the largest picture has `longest_px` pixels."""
        found = read_detections(files.model_file("detect", ".csv"), files.receipt("detect"))
        confusion = files.model_file("confusion", ".ome.zarr")
        grid = heat_grid(files.model_file("heatmap", ".ome.zarr"), files.receipt("heatmap"), confusion)
        return cls(
            files.slide,
            {"name": files.slide, "label": label, "detections": found},
            [{"heat": _heatmap(grid, stride)} for stride in _STRIDES],
            _pictures(files, longest_px),
        )

    def content(self, heatmap: int = 0, picture: int = 0) -> Json:
        """The entry with the heatmap and the picture of these sizes, 0 the largest."""
        return {**self.facts, **self.heatmaps[heatmap], **self.pictures[picture]}


def fit_entries(slides: Sequence[SlideEntry], errors: Mapping[str, int], room: int) -> list[Json]:
    """The content of entries that fits into `room` bytes: smaller heatmaps and pictures before fewer slides.

    Heatmaps take half of the room at most. Slides with the fewest `errors` are left out first.
    """
    heatmap = _first_fitting([[slide.heatmaps[k] for slide in slides] for k in range(len(_STRIDES))], room // 2)
    room -= _total_size(slide.heatmaps[heatmap] for slide in slides)
    picture = _first_fitting([[slide.pictures[k] for slide in slides] for k in range(len(_SHARES))], room)
    found = {slide.name: slide.content(heatmap, picture) for slide in slides}
    used = _total_size(slide.pictures[picture] for slide in slides)
    for name in sorted(found, key=lambda name: errors[name]):
        if used <= room:
            break
        used -= embedded_size(found.pop(name))
    return list(found.values())


def _first_fitting(sizes: Sequence[Sequence[Json]], room: int) -> int:
    """Index of the first size that fits into `room` bytes, else of the last."""
    fitting = (k for k, parts in enumerate(sizes) if _total_size(parts) <= room)
    return next(fitting, len(sizes) - 1)


def _total_size(parts: Iterable[Json]) -> int:
    return sum(map(embedded_size, parts))


def embedded_size(content: Json) -> int:
    """Characters of the content in a page."""
    return len(embedded_json(content))


def pooled_scores(layout: Layout, slides: Sequence[str]) -> Json:
    """The exact score histogram of all slides: `data` has scores, normal and tumour counts as uint32, compressed."""
    files = [layout.of(slide) for slide in slides]
    tables = (
        ScoreHistogram.read(one.model_file("scores", ".parquet"), read_receipt(one.receipt("scores"), ScoresReceipt))
        for one in files
    )
    pooled = ScoreHistogram.sum_of(tables)
    known = np.flatnonzero(pooled.normal + pooled.tumor)
    columns = np.stack((pooled.steps[known], pooled.normal[known], pooled.tumor[known]))
    return {"scores": len(known), "data": _compressed(columns.astype("<u4").tobytes())}


def _heatmap(grid: HeatGrid, stride: int) -> Json:
    reduced = grid.every(stride)
    return {**reduced.geometry(), "every": stride, "data": _compressed(reduced.packed())}


def _compressed(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 9)).decode()


def _pictures(files: SlideLayout, longest_px: int) -> list[Json]:
    """The slide and its outlines as data URIs, with their geometry, in each of the sizes."""
    pyramid = Pyramid(files.pyramid())
    layers = {
        "tissue": tissue_overlay(LabelOverview.of(open_image(files.slide_file("tissue.ome.zarr"), pyramid.mpp))),
        "truth": truth_overlay(LabelOverview.of(open_image(files.slide_file("truth.ome.zarr"), pyramid.mpp))),
    }
    found = []
    for share in _SHARES:
        picture, mpp = pyramid.thumbnail(max(_LEAST_PX, int(share * longest_px)))
        box = Box(0, 0, picture.shape[1], picture.shape[0])
        found.append(
            {
                "mpp": pyramid.mpp,
                "width": pyramid.size.width,
                "height": pyramid.size.height,
                "pictureSize": [box.width, box.height],
                "slide": _data_uri("jpeg", _jpeg(picture)),
                **{name: _data_uri("png", outline_png(layer, box, mpp)) for name, layer in layers.items()},
            }
        )
    return found


def _jpeg(picture: RgbImage) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(picture).save(buffer, format="JPEG", quality=82)
    return buffer.getvalue()


def _data_uri(kind: str, content: bytes | None) -> str | None:
    return None if content is None else f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
