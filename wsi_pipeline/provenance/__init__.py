"""Where results come from: RO-Crate, checksums, run records, versions, Snakemake's metadata of finished jobs.

Stages, the command line and the workflow import it; it imports `evaluation`, `cohort`,
`io` and `config`.
"""
