"""AMOS: a minimal loop, and its experiments; see README.md."""
