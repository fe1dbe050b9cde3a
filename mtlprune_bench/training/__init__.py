"""One training loop for all methods: batches, masks in place, checkpoints, metrics."""
