"""Loops that show how lipprof is used."""
