"""Runners, which execute lists of runs, one file each."""
