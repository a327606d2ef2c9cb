"""Provenance of results: RO-Crate, checksums, run records, package versions, Snakemake's metadata of finished jobs.

Imported by `report`, `view`, the stages, the command line and the workflow; imports `evaluation`, `cohort`, `receipts`,
`io` and `config`.
"""
