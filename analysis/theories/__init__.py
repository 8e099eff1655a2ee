"""What theories of training at the edge of stability predict, from a loss and an update rule."""
