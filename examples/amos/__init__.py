"""AMOS: a minimal loop, and the experiment on the best of both optimizers; see README.md."""
