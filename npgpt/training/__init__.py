"""Training: configuration, steps, checkpoints and output."""
