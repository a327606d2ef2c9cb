"""The contents of the report: its page, curves and tables, checks over the cohort, and the data of each slide."""
