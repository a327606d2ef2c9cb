"""Figures of merit as pure functions of arrays: ROC, precision-recall, FROC, calibration, intervals.

Nothing here reads or writes a file. It imports `geometry`, `seeds` and `errors` only.
"""
