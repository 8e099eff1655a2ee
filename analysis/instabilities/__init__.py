"""What the oscillations of a run are: their cause, size, period and bifurcation."""
