"""The live dashboard: runs of a place as they are now, drawn in a browser while they grow."""
