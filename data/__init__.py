"""Bundled data sets; origin and licence of each are in README.md."""
