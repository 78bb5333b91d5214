"""Published results, for comparison with those of a sweep. Each has its source."""
