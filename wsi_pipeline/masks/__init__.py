"""Tissue and annotations, as polygons and as label images.

Tissue detection, annotation formats and their interpretation, rasterisation, label images and their fractions of a
patch, GeoJSON for QuPath.
"""
