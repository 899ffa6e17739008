"""Hessian-vector products: the backends, and which of them serves a run."""
