"""Where the updates of mini-batches lose stability in mean square, along a run."""
