"""Slide pyramids as OME-Zarr 0.5 stores, and patch stores: writing, reading and verification.

Writing: `conversion`, `level_plan`, `passthrough`, `reencode`, `writing`, `shards`, `source_comparison`. Reading:
`pyramid`, `level`, `patch_reader`, `stain`. Both: `ome_zarr`, `patch_store`, `codecs`. Heatmaps for export:
`heatmap_tiff`.
"""

from wsi_pipeline.pyramid.pyramid import Pyramid as Pyramid
