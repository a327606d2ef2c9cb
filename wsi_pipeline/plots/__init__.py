"""Figures (matplotlib), outline overlays on slides, and the colours of both.

Imported by the stages, `report` and `view`; imports `evaluation`, `masks`, `pyramid`, `metrics`, `io` and `geometry`.
"""
