"""The curvature at which an optimizer becomes unstable."""
