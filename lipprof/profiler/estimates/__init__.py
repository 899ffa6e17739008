"""What one measurement computes of eigenpairs, units and blocks, and carries to the next."""
