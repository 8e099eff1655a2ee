"""Bifurcations of the training map: cycles, their branches, diagrams, exponents, normal forms."""
