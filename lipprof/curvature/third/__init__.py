"""Third derivatives: gradients of eigenvalues, and whether torch gets them right."""
