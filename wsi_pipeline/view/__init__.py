"""The viewer: a web server on the loopback interface that shows results at full resolution in a browser.

Imported by the command line; imports `report`, `provenance`, `plots`, `evaluation`, `pyramid`, `slides`, `receipts`,
`io`, `config` and `geometry`.
"""
