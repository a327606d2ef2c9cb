"""The contents of the report page: checks over the cohort, and the data of each slide.

The stage `report` and `view` import it; it imports `evaluation`, `plots`, `masks`, `pyramid` and `io`.
"""
