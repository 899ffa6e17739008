"""What lipprof can do here, and what a measurement would take: found out by trying."""
