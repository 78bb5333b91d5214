"""Folders of runs: their names, which run a folder belongs to, locks, and caches."""
