"""The contents of the report: its page, curves and tables, checks over the cohort, and the data of each slide.

The stage `report` and `view` import it; it imports `provenance`, `plots`, `evaluation`, `cohort`, `masks`, `pyramid`,
`receipts` and `io`.
"""
