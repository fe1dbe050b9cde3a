"""Data: the files of datasets, found, indexed, read, verified, prepared, shown and generated."""
