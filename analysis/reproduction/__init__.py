"""Published results made again, each with a page that compares them with what was measured."""
