"""Bundled data sets and published numbers; origin and licence of each are in README.md."""
