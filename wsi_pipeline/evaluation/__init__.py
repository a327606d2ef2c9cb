"""Evaluation: from stored predictions to the figures of a cohort.

Heatmaps with their labels, score histograms, detections, confusion, the operating point, slide features and their
classification, the evaluation of a cohort and its tables, the comparison of models, the summary, and the evaluation of
predictions made by other programs (`external`).
"""
