"""Slide files as scanners write them.

OpenSlide's reader, TIFF in strips, the compressed tiles of tiled TIFF, JPEG streams, and the isolation of crashes in
C libraries. It imports `geometry` and `errors` only.
"""
