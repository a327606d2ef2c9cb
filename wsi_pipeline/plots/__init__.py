"""Figures (matplotlib), outline overlays on slides and their thumbnails, and the colours of both."""
