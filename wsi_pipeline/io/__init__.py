"""Files: atomic writes, digests, the layout of a results folder, direct I/O.

Every room except `config` and `geometry` may import this package; it imports only `errors`.
"""
