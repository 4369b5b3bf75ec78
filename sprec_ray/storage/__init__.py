"""Where runs are kept that are not in a folder: an address of pyarrow.fs, and the mirror of it on this machine."""
