"""Tasks with their losses and metrics, one file each."""
