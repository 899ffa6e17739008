"""How fast curvature moves: cubic models, tracking of eigenpairs, Lipschitz estimators."""
