"""Slide pyramids as OME-Zarr 0.5 stores, and patch stores: writing, reading and verification.

Writing: `level_plan`, `passthrough`, `reencode`, `writing`, `shards`, `codecs`, `source_comparison`. Reading:
`pyramid`, `level`, `patch_reader`, `patch_store`. Both: `ome_zarr`. Imports `slides`, `io`, `config` and
`geometry`.
"""
