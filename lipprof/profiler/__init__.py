"""When to measure, and that the training loop never notices."""
