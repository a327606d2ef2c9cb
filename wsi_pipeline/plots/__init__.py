"""Figures (matplotlib), overlays on slides, and the colours of both.

Stages, `report` and `view` import it; it imports `evaluation`, `metrics`, `masks` and `pyramid`.
"""
