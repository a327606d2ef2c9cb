"""Provenance of results: RO-Crate, checksums, run records, package versions, Snakemake's metadata of finished jobs."""
