"""What a config describes, in the package's own terms."""
