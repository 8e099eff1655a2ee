"""Studies: many runs over axes of the configuration, measured and kept in one file."""
