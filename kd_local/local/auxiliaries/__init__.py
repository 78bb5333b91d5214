"""The auxiliary networks of local learning, one file each."""
