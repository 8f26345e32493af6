"""Training on many devices: the same model, cut along the dimensions of a mesh, with the same loss."""
