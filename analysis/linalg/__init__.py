"""Symmetric operators, given by their products: certified eigenpairs, densities, modes."""
