"""AMOS: a minimal loop and experiments; see README.md."""
