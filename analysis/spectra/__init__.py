"""Hessian and NTK spectra along a run, crossings of the threshold and oscillations."""
