"""Rules: numbers in, a recommendation per tensor out."""
