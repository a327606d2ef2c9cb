"""Figures of merit as pure functions of arrays: ROC, precision-recall, FROC, calibration, confidence intervals.

No module here reads or writes files.
"""
