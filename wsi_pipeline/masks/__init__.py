"""Tissue and annotations as areas and label images.

Tissue detection, annotation files and their meaning, rasterisation, label images and their share of a patch,
GeoJSON for QuPath. It imports `pyramid`, `slides`, `io`, `config` and `geometry`.
"""
