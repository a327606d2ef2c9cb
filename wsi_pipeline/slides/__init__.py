"""Source slide files.

The OpenSlide reader, stripped TIFF, the encoded tiles of tiled TIFF, JPEG streams, and the isolation of crashes in C
libraries.
"""
