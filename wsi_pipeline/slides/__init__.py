"""Source slide files.

The OpenSlide reader, the pages of TIFF files and which of them are the slide, the encoded tiles of tiled TIFF, JPEG
streams, and the isolation of crashes in C libraries.
"""
