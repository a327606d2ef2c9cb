"""Files: atomic writes, digests, the layout of a results folder, direct I/O.

Every room may import this package; it imports only `config` and `errors`.
"""
