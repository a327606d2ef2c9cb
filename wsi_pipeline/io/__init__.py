"""Files: atomic writes, digests of values, files and folders, the layout of a results folder, direct I/O."""
