"""From stored predictions to the figures of a cohort.

Heatmaps with their labels, score histograms, slide features and scores, the evaluation of a cohort and its tables,
the summary, and the evaluation of predictions made by other programs (`external`). Stages, `report` and the command
line import it; it imports `cohort`, `metrics`, `masks`, `pyramid`, `io` and `config`.
"""
