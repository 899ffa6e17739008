"""The paper's experiments on Hessian-Lipschitz parameters; see README.md."""
