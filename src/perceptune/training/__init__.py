"""The training loop: batches, optimizer, checkpoints, validation, exact resume."""
