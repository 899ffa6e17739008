"""Several runs side by side: where they stand, in a terminal, as figures and as a page."""
