"""From a loss to a matrix-free Hessian; the only home of torch.autograd."""
