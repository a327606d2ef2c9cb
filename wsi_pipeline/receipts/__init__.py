"""Receipts: small JSON files beside each output that state its content.

`base` writes and reads them; the other modules have one model for each stage. A receipt holds facts about content only
(counts, sizes, digests, options): no times, no paths and no host names, so that a rebuild with the same content gives
the same bytes and causes no rerun downstream.
"""
