"""The contents of the report: its page, curves and tables, checks over the cohort, and the data of each slide.

Imported by the stage `report` and by `view`; imports `provenance`, `plots`, `evaluation`, `cohort`, `masks`, `pyramid`,
`metrics`, `receipts`, `io`, `config` and `geometry`.
"""
