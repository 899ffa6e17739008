"""Attaching to a program that does not know of lipprof."""
