"""Pyramids of slides as OME-Zarr 0.5 stores, and stores of patches: writing, reading, checking.

Writing: `level_plan`, `passthrough`, `reencode`, `writing`, `shards`, `codecs`, `source_comparison`. Reading:
`pyramid`, `level`, `patch_reader`, `patch_store`. Both: `ome_zarr`. It imports `slides`, `io`, `config` and
`geometry`.
"""
